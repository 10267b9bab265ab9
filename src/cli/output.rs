//! stdout: text, tables, JSON, raw bytes.
//!
//! Everything goes through one buffer, so that a verb may print line by line; a reader that goes
//! away shows as [`ReaderGone`], which [`super::failure`] takes for success.

use std::error::Error;
use std::fmt::{self, Display, Formatter};
use std::io::{self, BufWriter, Write};

use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Table, presets};
use serde::Serialize;

use super::failure::Outcome;

/// The reader of the answer went away: it has seen what it wanted to see. Any other broken pipe is
/// a failure.
#[derive(Debug)]
pub struct ReaderGone;

impl Display for ReaderGone {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str("the reader of the output went away")
    }
}

impl Error for ReaderGone {}

/// Tells a broken pipe of the answer from others.
struct Answer<W>(W);

impl<W: Write> Write for Answer<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf).map_err(gone)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(gone)
    }
}

fn gone(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe {
        io::Error::new(io::ErrorKind::BrokenPipe, ReaderGone)
    } else {
        error
    }
}

/// Where a verb writes its answer.
pub struct Output {
    writer: BufWriter<Box<dyn Write + Send>>,
}

impl Output {
    /// The program's stdout.
    pub fn stdout() -> Self {
        Self::new(Box::new(Answer(io::stdout())))
    }

    /// Any writer.
    pub fn new(writer: Box<dyn Write + Send>) -> Self {
        Self {
            writer: BufWriter::with_capacity(64 << 10, writer),
        }
    }

    /// A line of text; guest strings in it must have been escaped.
    ///
    /// # Errors
    /// Of writing.
    pub fn line(&mut self, text: impl AsRef<str>) -> Outcome<()> {
        self.writer.write_all(text.as_ref().as_bytes())?;
        self.writer.write_all(b"\n")?;
        Ok(())
    }

    /// Bytes as they are.
    ///
    /// # Errors
    /// Of writing.
    pub fn bytes(&mut self, bytes: &[u8]) -> Outcome<()> {
        self.writer.write_all(bytes)?;
        Ok(())
    }

    /// One JSON document, indented, with a newline at its end.
    ///
    /// # Errors
    /// Of writing.
    pub fn json(&mut self, value: &impl Serialize) -> Outcome<()> {
        serde_json::to_writer_pretty(&mut self.writer, value).map_err(io::Error::from)?;
        self.line("")
    }

    /// A table without borders: a line of column names, columns apart by two spaces, columns
    /// whose name is in `right` aligned to the right. No tabs, never wrapped.
    ///
    /// # Errors
    /// Of writing.
    pub fn table(&mut self, names: &[&str], right: &[&str], rows: &[Vec<String>]) -> Outcome<()> {
        let mut table = Table::new();
        table
            .load_style(presets::NOTHING)
            .set_content_arrangement(ContentArrangement::Disabled)
            .set_header(names.to_vec());
        for row in rows {
            table.add_row(row.clone());
        }
        for (n, name) in names.iter().enumerate() {
            if let Some(column) = table.column_mut(n) {
                column.set_padding((0, 2));
                column.set_constraint(ColumnConstraint::ContentWidth);
                if right.contains(name) {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        for line in table.to_string().lines() {
            self.line(line.trim_end())?;
        }
        Ok(())
    }

    /// Writes out what is still in the buffer.
    ///
    /// # Errors
    /// Of writing.
    pub fn flush(&mut self) -> Outcome<()> {
        self.writer.flush()?;
        Ok(())
    }

    /// Ends the output.
    ///
    /// # Errors
    /// Of writing what was still in the buffer.
    pub fn finish(mut self) -> Outcome<()> {
        self.flush()
    }
}

impl Write for Output {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.writer.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
