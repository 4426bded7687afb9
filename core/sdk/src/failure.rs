//! Errors on their way over the boundary.

use zeph_abi::Failure;

use crate::{Code, Error};

pub(crate) fn from_failure(failure: Failure) -> Error {
    Error::new(Code::from_number(failure.status), failure.text)
}

pub(crate) fn to_failure(error: Error) -> Failure {
    Failure::new(error.code.number(), error.text)
}
