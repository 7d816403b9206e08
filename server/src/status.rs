//! What a caller is told: a code to branch on, a message to read, and whether to try again.
//!
//! `invalid_argument`: the call is wrong and will stay so. `not_found`: what it names has ended.
//! `resource_exhausted`, `unavailable`: later may be better. `failed_precondition`: an operator
//! must act. Misses and refused saves are answers, and never come here.

use crate::epochs::RaiseError;
use crate::load::LoadRefusal;
use crate::lookup::RegisterError;
use crate::naming::NameError;
use crate::pinning::PinningError;
use crate::pins::PinError;
use crate::removal::InvalidateError;
use crate::save::SaveError;
use crate::wire::WireError;
use refrain_index::directory::ForgetError;
use tonic::Status;

pub(crate) fn of_wire(error: WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

pub(crate) fn of_register(error: &RegisterError) -> Status {
    let message = error.to_string();
    match error {
        RegisterError::Namespace(_)
        | RegisterError::Layout(_)
        | RegisterError::BlockBytes { .. }
        | RegisterError::Shard { .. } => Status::invalid_argument(message),
        RegisterError::Segment { .. } | RegisterError::Frame { .. } => {
            Status::failed_precondition(message)
        }
        RegisterError::Session => Status::not_found(message),
        RegisterError::TooMany { .. } => Status::resource_exhausted(message),
    }
}

pub(crate) fn of_forget(error: ForgetError) -> Status {
    let message = error.to_string();
    match error {
        ForgetError::Unknown { .. } => Status::not_found(message),
        ForgetError::Alive { .. } | ForgetError::Unreached => Status::failed_precondition(message),
    }
}

pub(crate) fn of_load(refusal: LoadRefusal) -> Status {
    match refusal {
        LoadRefusal::NoLease => no_lease(),
        LoadRefusal::OutOfRange { matched } => Status::invalid_argument(format!(
            "blocks are not among the {matched} that the lookup matched"
        )),
    }
}

pub(crate) fn of_save(error: SaveError) -> Status {
    let message = error.to_string();
    match error {
        SaveError::NoLease | SaveError::NoReservation => Status::not_found(message),
        SaveError::OutOfRange { .. }
        | SaveError::Unreserved { .. }
        | SaveError::Length { .. }
        | SaveError::Place { .. }
        | SaveError::NoSession
        | SaveError::Written { .. } => Status::invalid_argument(message),
    }
}

pub(crate) fn of_name(error: NameError) -> Status {
    match error {
        NameError::Unknown => Status::not_found(error.to_string()),
        NameError::Undescribed => Status::failed_precondition(error.to_string()),
    }
}

pub(crate) fn of_pin(error: &PinningError) -> Status {
    match error {
        PinningError::Pin(PinError::Absent) => Status::not_found(error.to_string()),
        PinningError::Pin(PinError::TooMany { .. } | PinError::Share { .. }) => {
            Status::resource_exhausted(error.to_string())
        }
        PinningError::Pin(PinError::Small { .. }) => Status::failed_precondition(error.to_string()),
        PinningError::Pin(PinError::Leaving) => Status::unavailable(error.to_string()),
        PinningError::Keep(_) => with_source(error),
    }
}

/// What an operator must see to, with what the system said.
fn with_source(error: &dyn std::error::Error) -> Status {
    let why = error.source().map(ToString::to_string);
    Status::failed_precondition(format!("{error}: {}", why.unwrap_or_default()))
}

pub(crate) fn of_invalidate(error: &InvalidateError) -> Status {
    match error {
        InvalidateError::Raise(RaiseError::Lower { .. }) => {
            Status::invalid_argument(error.to_string())
        }
        InvalidateError::Raise(RaiseError::Last) => Status::failed_precondition(error.to_string()),
        InvalidateError::Keep(_) => with_source(error),
    }
}

pub(crate) fn no_lease() -> Status {
    Status::not_found("lease is not known: it has ended")
}

pub(crate) fn no_registration() -> Status {
    Status::not_found("registration is not known: register again")
}

pub(crate) fn draining() -> Status {
    Status::unavailable("sidecar is draining: go on without it")
}
