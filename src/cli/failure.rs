//! What a verb fails with.

use std::error::Error;
use std::fmt::Write as _;
use std::io;

use super::exit::Exit;
use super::output::ReaderGone;
use super::text::one_line;
use crate::formats::FormatError;

/// Result of a verb.
pub type Outcome<T = Exit> = Result<T, Failure>;

/// A chain of errors, the exit status it leads to, and what the user can do.
///
/// Not an [`Error`] itself, so that `?` turns any error into one.
#[derive(Debug)]
pub struct Failure {
    exit: Exit,
    error: anyhow::Error,
    hint: Option<String>,
}

impl<E: Error + Send + Sync + 'static> From<E> for Failure {
    fn from(error: E) -> Self {
        Self {
            exit: Exit::Failed,
            error: error.into(),
            hint: None,
        }
    }
}

impl Failure {
    /// A failure that starts here.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Failed,
            error: anyhow::Error::msg(message.into()),
            hint: None,
        }
    }

    /// A wrong command line that clap cannot see.
    pub fn usage(message: impl Into<String>) -> Self {
        Self {
            exit: Exit::Usage,
            ..Self::new(message)
        }
    }

    /// The same failure seen from one level further up.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        Self {
            error: self.error.context(context.into()),
            ..self
        }
    }

    /// The same failure with advice.
    #[must_use]
    pub fn with_hint(self, hint: impl Into<String>) -> Self {
        Self {
            hint: Some(hint.into()),
            ..self
        }
    }

    /// The chain in one line, without the hint.
    pub fn line(&self) -> String {
        let mut line = String::new();
        for (n, part) in self.error.chain().enumerate() {
            let part = part.to_string();
            // Some errors of other crates already repeat their source.
            if n > 0 && line.ends_with(&part) {
                continue;
            }
            let _ = write!(line, "{}{part}", if n > 0 { ": " } else { "" });
        }
        one_line(&line)
    }

    /// What the user can do: what was attached here, or by the format that refused.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref().or_else(|| {
            self.error
                .chain()
                .find_map(|e| e.downcast_ref::<FormatError>()?.hint())
        })
    }

    /// Whether the reader of our answer went away, which is no failure.
    pub fn is_reader_gone(&self) -> bool {
        self.error.chain().any(|e| {
            e.downcast_ref::<io::Error>()
                .and_then(io::Error::get_ref)
                .is_some_and(|e| e.is::<ReaderGone>())
        })
    }

    /// Whether an error of the host in the chain answers to `test`.
    pub fn has_io_error(&self, test: impl Fn(&io::Error) -> bool) -> bool {
        self.error.chain().any(|e| {
            e.downcast_ref::<io::Error>().is_some_and(&test)
                || e.downcast_ref::<rustix::io::Errno>()
                    .is_some_and(|e| test(&io::Error::from(*e)))
        })
    }

    /// Says on stderr what failed; returns the exit status.
    pub fn report(&self) -> Exit {
        if self.is_reader_gone() {
            return Exit::Done;
        }
        eprintln!("guestlens: {}", self.line());
        if let Some(hint) = self.hint() {
            eprintln!("hint: {}", one_line(hint));
        }
        self.exit
    }
}

/// Adds context to results whose error is or becomes a [`Failure`].
pub trait Context<T> {
    /// Says what was being done.
    ///
    /// # Errors
    /// The same error, one level further up.
    fn context(self, context: impl FnOnce() -> String) -> Outcome<T>;
}

impl<T, E: Into<Failure>> Context<T> for Result<T, E> {
    fn context(self, context: impl FnOnce() -> String) -> Outcome<T> {
        self.map_err(|e| e.into().within(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::FormatErrorKind;

    #[test]
    fn one_line_with_hint() {
        let error = FormatError::new(FormatErrorKind::NotAllowed, "backing file \"x\"")
            .with_hint("--allow-backing DIR allows it");
        let failure = Failure::from(error.within("layer 1")).within("a.qcow2\n");
        assert_eq!(failure.line(), "a.qcow2\\n: layer 1: backing file \"x\"");
        assert_eq!(failure.hint(), Some("--allow-backing DIR allows it"));
        assert!(!failure.is_reader_gone());
    }

    #[test]
    fn only_the_reader_of_the_answer_may_go() {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, ReaderGone);
        assert!(Failure::from(gone()).within("x").is_reader_gone());
        assert!(!Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_reader_gone());
    }
}
