//! Tests of transactions as programs see them: the rules of the contract, one by one, and random programs against a model.

mod basics;
