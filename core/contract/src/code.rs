//! The closed list of error codes, and the error that services answer each other with.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($variant:ident = $number:literal, $name:literal, $doc:literal;)+) => {
        /// What went wrong, for a program. The numbers are those of the plugin ABI.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Code {
            $(#[doc = $doc] $variant = $number,)+
        }

        impl Code {
            /// Every code.
            pub const ALL: &[Code] = &[$(Code::$variant),+];

            /// The number that crosses the ABI.
            pub const fn number(self) -> i32 {
                self as i32
            }

            /// The code of a number; one that is not known counts as [`Code::Internal`].
            pub const fn from_number(number: i32) -> Self {
                match number {
                    $($number => Code::$variant,)+
                    _ => Code::Internal,
                }
            }

            /// The code's name on every wire.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Code::$variant => $name,)+
                }
            }
        }
    };
}

codes! {
    Panicked = 2, "panicked", "The callee panicked while it worked on this.";
    Unsupported = 3, "unsupported", "The callee does not know this method or event.";
    Invalid = 16, "invalid", "The request does not make sense; the same request will never do.";
    Refused = 17, "refused", "The asker may not do this.";
    NotFound = 18, "not_found", "There is no such thing.";
    Unavailable = 19, "unavailable", "The one who could do it does not live at present.";
    Busy = 20, "busy", "A limit is reached; later it may work.";
    Timeout = 21, "timeout", "The answer did not come in time.";
    Cancelled = 22, "cancelled", "Nobody waits for it any more, or it was ended from outside.";
    Incompatible = 23, "incompatible", "Two versions that do not fit.";
    Internal = 24, "internal", "A fault of the callee.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What services answer each other when something went wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Error {
    /// For a program.
    pub code: Code,
    /// For a person: what happened, where, what to do.
    pub text: String,
}

impl Error {
    /// An error of a code with a text.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

macro_rules! constructors {
    ($($name:ident $variant:ident;)+) => {
        impl Error {
            $(
                #[doc = concat!("An error with [`Code::", stringify!($variant), "`].")]
                pub fn $name(text: impl Into<String>) -> Self {
                    Self::new(Code::$variant, text)
                }
            )+
        }
    };
}

constructors! {
    invalid Invalid;
    refused Refused;
    not_found NotFound;
    unavailable Unavailable;
    busy Busy;
    timeout Timeout;
    cancelled Cancelled;
    internal Internal;
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.text)
    }
}

impl std::error::Error for Error {}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Self {
        Self::invalid(format!("JSON: {error}"))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::internal(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_are_a_closed_list() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), *code);
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{}\"", code.name()));
        }
        assert_eq!(Code::from_number(999), Code::Internal);
    }
}
