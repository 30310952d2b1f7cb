//! [`pass_on!`](crate::pass_on): an [`Endpoint`](crate::Endpoint) that stands in front of another one, without a dozen functions that only pass a question on.

// What the macro writes into other crates, which need not know where it comes from.
pub use ferrisdb_core::{Bytes, KeyRange, Version};

/// Passes questions on, in an `impl Endpoint`: those that are named, so that one that the endpoint answers itself is seen to be missing.
///
/// With one name in front, the expression says to whom. With two, the second is the question, a closure that takes the endpoint that is to be asked, and the
/// expression says what becomes of it. Such a question can be put once; cloned before, again.
///
/// ```
/// use ferrisdb_rpc::api::{BeginRequest, Begun, CommitRequest, Committed, Description};
/// use ferrisdb_rpc::{Answer, Endpoint, pass_on};
/// use std::sync::Arc;
///
/// /// A database that takes no commits.
/// struct ReadOnly(Arc<dyn Endpoint>);
///
/// impl ReadOnly {
///     fn counted<T>(&self, question: impl FnOnce(&dyn Endpoint) -> Answer<T>) -> Answer<T> {
///         println!("a transaction begins");
///         question(self.0.as_ref())
///     }
/// }
///
/// impl Endpoint for ReadOnly {
///     fn description(&self) -> Description {
///         self.0.description()
///     }
///
///     fn commit(&self, _: CommitRequest) -> Answer<Committed> {
///         ferrisdb_core::Error::new(ferrisdb_core::Code::OperationCancelled).into()
///     }
///
///     pass_on! { |self, question| self.counted(question) => begin }
///
///     pass_on! {
///         |self| self.0 => get, get_key, get_range, resolve, watch, lease, estimated_size, split_points, addresses_for_key,
///         locations, status
///     }
/// }
/// ```
#[macro_export]
macro_rules! pass_on {
    (|$this:ident| $to:expr => $($method:ident),+ $(,)?) => {
        $($crate::pass_on!(@$method [$this] to [$to]);)+
    };
    (|$this:ident, $question:ident| $how:expr => $($method:ident),+ $(,)?) => {
        $($crate::pass_on!(@$method [$this] as $question [$how]);)+
    };

    (@begin $($to:tt)*) => {
        $crate::pass_on!(fn begin($crate::api::BeginRequest) -> $crate::api::Begun, $($to)*);
    };
    (@get $($to:tt)*) => {
        $crate::pass_on!(fn get($crate::api::GetRequest) -> Option<$crate::pass_on::Bytes>, $($to)*);
    };
    (@get_key $($to:tt)*) => {
        $crate::pass_on!(fn get_key($crate::api::GetKeyRequest) -> $crate::pass_on::Bytes, $($to)*);
    };
    (@get_range $($to:tt)*) => {
        $crate::pass_on!(fn get_range($crate::api::GetRangeRequest) -> $crate::api::Rows, $($to)*);
    };
    (@commit $($to:tt)*) => {
        $crate::pass_on!(fn commit($crate::api::CommitRequest) -> $crate::api::Committed, $($to)*);
    };
    (@resolve $($to:tt)*) => {
        $crate::pass_on!(fn resolve($crate::api::ResolveRequest) -> Option<$crate::api::Committed>, $($to)*);
    };
    (@watch $($to:tt)*) => {
        $crate::pass_on!(fn watch($crate::api::WatchRequest) -> $crate::pass_on::Version, $($to)*);
    };
    (@lease $($to:tt)*) => {
        $crate::pass_on!(fn lease($crate::api::LeaseRequest) -> $crate::api::Lease, $($to)*);
    };
    (@estimated_size $($to:tt)*) => {
        $crate::pass_on!(fn estimated_size($crate::pass_on::KeyRange) -> u64, $($to)*);
    };
    (@split_points $($to:tt)*) => {
        $crate::pass_on!(fn split_points($crate::api::SplitPointsRequest) -> Vec<$crate::pass_on::Bytes>, $($to)*);
    };
    (@addresses_for_key $($to:tt)*) => {
        $crate::pass_on!(fn addresses_for_key($crate::pass_on::Bytes) -> Vec<String>, $($to)*);
    };
    (@locations $($to:tt)*) => {
        $crate::pass_on!(fn locations($crate::api::LocationsRequest) -> $crate::api::Locations, $($to)*);
    };
    (@message $($to:tt)*) => {
        $crate::pass_on!(fn message($crate::pass_on::Bytes) -> $crate::pass_on::Bytes, $($to)*);
    };
    (@status $($to:tt)*) => {
        $crate::pass_on!(fn status() -> String, $($to)*);
    };

    (fn $method:ident() -> $answer:ty, [$this:ident] to [$to:expr]) => {
        fn $method(&$this) -> $crate::Answer<$answer> {
            $to.$method()
        }
    };
    (fn $method:ident($request:ty) -> $answer:ty, [$this:ident] to [$to:expr]) => {
        fn $method(&$this, request: $request) -> $crate::Answer<$answer> {
            $to.$method(request)
        }
    };
    (fn $method:ident() -> $answer:ty, [$this:ident] as $question:ident [$how:expr]) => {
        fn $method(&$this) -> $crate::Answer<$answer> {
            let $question = |endpoint: &dyn $crate::Endpoint| endpoint.$method();
            $how
        }
    };
    (fn $method:ident($request:ty) -> $answer:ty, [$this:ident] as $question:ident [$how:expr]) => {
        fn $method(&$this, request: $request) -> $crate::Answer<$answer> {
            let $question = move |endpoint: &dyn $crate::Endpoint| endpoint.$method(request);
            $how
        }
    };
}
