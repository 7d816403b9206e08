//! Errors as exceptions: a class a kind, with a stable code and whether to try again.

use pyo3::prelude::*;
use refrain_client::ClientError;
use std::error::Error;

/// The classes, which are Python's.
mod kinds {
    use pyo3::import_exception;

    import_exception!(refrain_kv.errors, AbsentError);
    import_exception!(refrain_kv.errors, AddressError);
    import_exception!(refrain_kv.errors, AnswerError);
    import_exception!(refrain_kv.errors, ArenaTooSmallError);
    import_exception!(refrain_kv.errors, BlocksOutOfRangeError);
    import_exception!(refrain_kv.errors, CacheError);
    import_exception!(refrain_kv.errors, CancelledError);
    import_exception!(refrain_kv.errors, ClosedError);
    import_exception!(refrain_kv.errors, RefrainError);
    import_exception!(refrain_kv.errors, RefusedError);
    import_exception!(refrain_kv.errors, TransferError);
}

/// What an exception of ours is made of: message, code, whether to try again.
type Arguments = (String, &'static str, bool);

pub(crate) fn of_client(error: &ClientError) -> PyErr {
    let arguments: Arguments = (chain(error), error.code(), error.retry());
    match error {
        ClientError::Absent { .. } => kinds::AbsentError::new_err(arguments),
        ClientError::Refused { .. } => kinds::RefusedError::new_err(arguments),
        ClientError::ArenaTooSmall { .. } => kinds::ArenaTooSmallError::new_err(arguments),
        ClientError::BlocksOutOfRange { .. } => kinds::BlocksOutOfRangeError::new_err(arguments),
        ClientError::Cache { .. } => kinds::CacheError::new_err(arguments),
        ClientError::Transfer { .. } => kinds::TransferError::new_err(arguments),
        ClientError::Answer { .. } => kinds::AnswerError::new_err(arguments),
        ClientError::PlainText { .. }
        | ClientError::Identity { .. }
        | ClientError::Buffer { .. }
        | _ => kinds::RefrainError::new_err(arguments),
    }
}

pub(crate) fn of_address(error: &dyn Error) -> PyErr {
    kinds::AddressError::new_err((error.to_string(), "address", false))
}

/// Arrays that are no paged KV cache.
pub(crate) fn of_cache(message: String) -> PyErr {
    kinds::CacheError::new_err((message, "cache", false))
}

pub(crate) fn cancelled() -> PyErr {
    kinds::CancelledError::new_err(("call was cancelled".to_owned(), "cancelled", false))
}

pub(crate) fn closed(why: &'static str) -> PyErr {
    kinds::ClosedError::new_err((why.to_owned(), "closed", false))
}

/// An error and its causes, outermost first.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}
