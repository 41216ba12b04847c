//! Errors and JSON output of commands that take several objects.

use crate::context::Context;
use crate::error::CommandError;

/// Prints the errors of single VPSes as they occur, and remembers that there was one.
pub struct ErrorReporter<'a> {
    context: &'a Context,
    any: bool,
}

impl<'a> ErrorReporter<'a> {
    pub fn new(context: &'a Context) -> Self {
        Self { context, any: false }
    }

    /// Prints the error, or returns it if the remaining VPSes would fail the same way.
    pub fn add(&mut self, failure: CommandError) -> Result<(), CommandError> {
        if failure.ends_all() {
            return Err(failure);
        }
        self.any = true;
        self.context.out.failure(&failure);
        Ok(())
    }

    /// Makes the command fail without printing an error.
    pub fn mark(&mut self) {
        self.any = true;
    }

    pub fn end(self) -> Result<(), CommandError> {
        if self.any { Err(CommandError::reported()) } else { Ok(()) }
    }
}

/// Prints an object for a single VPS, and an array for several.
pub fn print_json(context: &Context, asked: usize, mut results: Vec<serde_json::Value>) {
    match results.pop() {
        Some(only) if asked == 1 => context.out.json(&only),
        last => {
            results.extend(last);
            if asked > 1 {
                context.out.json(&results);
            }
        }
    }
}
