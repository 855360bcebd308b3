//! How an error reaches the operator: message, code, hint and exit status.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::ops::Range;
use std::process::ExitCode;

use miette::{Diagnostic, GraphicalReportHandler, LabeledSpan, NamedSource, SourceCode};
use serde_json::{Value, json};
use sheetanchor_core::error::{Error, Fault, FaultKind};
use sheetanchor_core::refusal::{Code, Refusal};

/// A result that ends in something to report.
pub type Result<T> = std::result::Result<T, Trouble>;

/// An error, and the place in a file that it is about, where there is one.
#[derive(Debug)]
pub struct Trouble {
    error: Error,
    place: Option<Box<Place>>,
    hint: Option<&'static str>,
}

/// A place in a file that the operator wrote.
#[derive(Debug)]
struct Place {
    source: NamedSource<String>,
    span: Range<usize>,
}

impl<E: Into<Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self { error: as_shown(error.into()), place: None, hint: None }
    }
}

/// A full disk is something that the operator can mend, and has a code of its own.
fn as_shown(error: Error) -> Error {
    match error {
        Error::Fault(fault) if fault.kind == FaultKind::NoSpace => {
            Refusal::new(Code::NoSpace, fault.to_string()).into()
        }
        other @ (Error::Refusal(_) | Error::Fault(_) | Error::Bug(_)) => other,
    }
}

impl Trouble {
    /// An error about `span` of the file `name`, which holds `text`.
    pub fn at(error: impl Into<Error>, name: &str, text: &str, span: Range<usize>) -> Self {
        let source = NamedSource::new(name, text.to_owned());
        Self { error: as_shown(error.into()), place: Some(Box::new(Place { source, span })), hint: None }
    }

    /// The same with a hint that fits better than that of its code.
    #[must_use]
    pub fn hinting(self, hint: &'static str) -> Self {
        Self { hint: Some(hint), ..self }
    }

    /// What went wrong.
    #[cfg(test)]
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// The refusal's code, if it is one.
    pub fn refused(&self) -> Option<Code> {
        self.error.refusal().map(|refusal| refusal.code)
    }

    /// The status that the process ends with.
    pub fn exit_code(&self) -> ExitCode {
        match self.error {
            Error::Refusal(_) => ExitCode::from(3),
            Error::Fault(_) | Error::Bug(_) => ExitCode::from(1),
        }
    }

    /// Reports it on standard error.
    pub fn report(&self, json: bool) {
        let mut out = std::io::stderr().lock();
        let text = if json {
            format!("{}\n", self.json())
        } else if out.is_terminal() {
            self.fancy()
        } else {
            self.plain()
        };
        // Nobody is left to be told that standard error is gone; the exit status still says it.
        drop(out.write_all(text.as_bytes()));
    }

    fn message(&self) -> String {
        match &self.error {
            Error::Refusal(refusal) => refusal.message.clone(),
            Error::Fault(fault) => fault.to_string(),
            Error::Bug(_) => self.error.to_string(),
        }
    }

    fn code_text(&self) -> Option<&'static str> {
        self.error.refusal().map(|refusal| refusal.code.as_str())
    }

    fn hint(&self) -> Option<&'static str> {
        self.hint.or(match &self.error {
            Error::Refusal(refusal) => Some(refusal.hint()),
            Error::Fault(Fault { kind: FaultKind::Exists, .. }) => Some("something else may be using it"),
            Error::Fault(_) => None,
            Error::Bug(_) => Some("this is a fault of Sheetanchor itself: please report it with this message"),
        })
    }

    fn json(&self) -> Value {
        let kind = match self.error {
            Error::Refusal(_) => "refusal",
            Error::Fault(_) => "fault",
            Error::Bug(_) => "bug",
        };
        let fields = json!({
            "kind": kind, "code": self.code_text(), "message": self.message(), "hint": self.hint(),
        });
        json!({ "error": fields })
    }

    fn plain(&self) -> String {
        let code = self.code_text().map(|code| format!(" ({code})")).unwrap_or_default();
        let hint = self.hint().map(|hint| format!("HINT: {hint}\n")).unwrap_or_default();
        format!("error: {}{code}\n{hint}", self.message())
    }

    fn fancy(&self) -> String {
        let mut handler = GraphicalReportHandler::new();
        if let Some(hint) = self.hint() {
            handler = handler.with_footer(format!("HINT: {hint}"));
        }
        let mut text = String::new();
        match handler.render_report(&mut text, self) {
            Ok(()) => text,
            Err(_) => self.plain(),
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message())
    }
}

impl std::error::Error for Trouble {}

impl Diagnostic for Trouble {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let refusal = self.error.refusal()?;
        Some(Box::new(format!("{}: {}", refusal.code, refusal.code.meaning())))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.place.as_ref().map(|place| -> &dyn SourceCode { &place.source })
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let place = self.place.as_ref()?;
        let label = LabeledSpan::at(place.span.clone(), "here");
        Some(Box::new(std::iter::once(label)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_shows_message_code_and_hint() {
        let trouble = Trouble::from(Refusal::new(Code::NameTaken, "`a` names point-1"));
        assert_eq!(
            trouble.plain(),
            "error: `a` names point-1 (SA213)\nHINT: choose a name that was never used in this cluster\n"
        );
        assert_eq!(trouble.json()["error"]["code"], "SA213");
        assert_eq!(trouble.json()["error"]["kind"], "refusal");
        let fancy = trouble.fancy();
        assert!(fancy.contains("SA213") && fancy.contains("HINT: choose a name"), "{fancy}");
    }

    #[test]
    fn a_full_disk_is_a_refusal() {
        let trouble = Trouble::from(Fault::new(FaultKind::NoSpace, "write /srv/x", "no space left on device"));
        assert_eq!(
            trouble.plain().lines().next().unwrap(),
            "error: cannot write /srv/x: no space left on device (SA505)"
        );
        assert_eq!(trouble.exit_code(), ExitCode::from(3));
    }

    #[test]
    fn a_fault_and_a_bug_end_with_one() {
        for error in
            [Error::from(Fault::new(FaultKind::Other, "read /srv/x", "it is on fire")), Error::Bug("odd".into())]
        {
            assert_eq!(Trouble::from(error).exit_code(), ExitCode::from(1));
        }
    }

    #[test]
    fn a_place_in_a_file_is_shown() {
        let refusal = Refusal::new(Code::ConfigInvalid, "line 2: no");
        let fancy = Trouble::at(refusal, "cluster.toml", "one\ntwo = 2\n", 4..7).fancy();
        assert!(fancy.contains("cluster.toml") && fancy.contains("two = 2"), "{fancy}");
    }
}
