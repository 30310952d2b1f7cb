//! FerrisDB's client library: databases, transactions, and the layers on them.
