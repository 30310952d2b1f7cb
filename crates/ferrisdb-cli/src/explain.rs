//! `ferrisdb explain`: what an error's number means and what to do.

use std::io::Write;

use ferrisdb::Code;
use ferrisdb_storage::inspect::{Cell, Sink as _};

use crate::arguments::{ExplainArguments, Output};
use crate::failure::Failure;
use crate::printer::Printer;

/// Explains one code, or lists all.
pub(crate) fn explain(arguments: &ExplainArguments, out: impl Write) -> Result<(), Failure> {
    let output = arguments.output.output;
    let Some(wanted) = &arguments.code else { return list(output, out) };
    let code = find(wanted)?;
    let mut printer = Printer::new(output, out);
    // Whether printing went well is known at its end.
    let told = printer.field("number", u64::from(code.number()).into()).and_then(|()| {
        printer.field("name", code.name().into())?;
        printer.field("what_happened", code.message().into())?;
        printer.field("what_to_do", code.remedy().into())?;
        printer.field("retryable", Cell::Flag(code.is_retryable()))?;
        printer.field("maybe_committed", Cell::Flag(code.is_maybe_committed()))
    });
    printer.finish(None)?;
    Ok(told?)
}

fn list(output: Output, out: impl Write) -> Result<(), Failure> {
    let mut printer = Printer::new(output, out);
    let told = printer.table("errors", &["number", "name", "what_to_do"]).and_then(|()| {
        Code::ALL.iter().try_for_each(|code| {
            printer.row(&[u64::from(code.number()).into(), code.name().into(), code.remedy().into()])
        })
    });
    printer.finish(None)?;
    Ok(told?)
}

/// By number, or by name in any case.
fn find(wanted: &str) -> Result<Code, Failure> {
    let by_number = wanted.parse().ok().and_then(Code::from_number);
    let by_name = || Code::ALL.iter().copied().find(|code| code.name().eq_ignore_ascii_case(wanted));
    by_number.or_else(by_name).ok_or_else(|| {
        Failure::usage(
            format!("no error has the number or name `{wanted}`"),
            "`ferrisdb explain` without an argument lists all",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_by_number_and_by_name() {
        for wanted in ["1020", "not_committed", "Not_Committed"] {
            assert_eq!(find(wanted).unwrap(), Code::NotCommitted);
        }
        for wanted in ["", "1", "-1020", "70000", "committed"] {
            assert!(find(wanted).unwrap_err().to_string().contains("lists all"), "{wanted}");
        }
    }
}
