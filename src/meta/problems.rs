//! Contents of `meta/problems` and `problems.json`: what is wrong or incomplete.
//!
//! One `SUBJECT: MESSAGE` line each, or a list of `{"subject": …, "message": …}`. Problems of an
//! operating system other than the only one have its name in front of the subject.

use serde_json::{Value, json};

use crate::guest::{Guest, Problem};
use crate::inspect::System;
use crate::ondisk::text::printable;

/// All problems of a guest and its systems, each once.
pub fn all(guest: &Guest, systems: &[System]) -> Vec<Problem> {
    let mut all = guest.problems().to_vec();
    for system in systems {
        for problem in system.problems() {
            let mut problem = problem.clone();
            if systems.len() > 1 {
                problem.subject = format!("{}:{}", system.name, problem.subject);
            }
            if !all.contains(&problem) {
                all.push(problem);
            }
        }
    }
    all
}

/// `meta/problems`.
pub fn text(guest: &Guest, systems: &[System]) -> String {
    let mut out = String::new();
    for problem in all(guest, systems) {
        for part in [&problem.subject, ": ", &problem.message] {
            out.push_str(&one_line(part));
        }
        out.push('\n');
    }
    out
}

/// `meta/problems.json`.
pub fn json(guest: &Guest, systems: &[System]) -> Value {
    json!(all(guest, systems))
}

/// Problems are printable already, so a backslash is not doubled again.
fn one_line(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        if c == '\\' {
            out.push(c);
        } else {
            out.push_str(&printable(c.encode_utf8(&mut [0; 4]).as_bytes()));
        }
    }
    out
}
