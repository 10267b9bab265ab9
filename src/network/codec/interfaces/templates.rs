//! Stanzas others inherit from, and stanzas only mappings use.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::super::super::api::Reading;
use super::super::super::ledger::State;
use super::super::super::model::{Effect, Natural};
use super::hooks::HOOKS;
use super::parse::{Opt, Parsed, Stanza, is_secret, unmapped};

/// Most options of one stanza with all it inherits.
const MAX_INHERITED: usize = 4096;

/// Options that may stand more than once.
fn is_list(name: &str) -> bool {
    HOOKS.contains(&name)
        || name.starts_with("dns-")
        || matches!(name, "address" | "use" | "requires" | "inherit")
}

/// The stanza with the options it inherits before its own.
pub(super) fn with_inherited(
    reading: &mut Reading<'_>,
    parsed: &Parsed,
    stanza: &Stanza,
    budget: &mut usize,
) -> Stanza {
    let mut out = stanza.clone();
    let mut sources: Vec<String> = stanza.inherits.clone();
    for option in stanza.options.iter().filter(|o| o.name == "inherit") {
        reading.mark(
            option.place.source,
            option.place.range.clone(),
            State::Mapped,
        );
        sources.push(option.value.clone());
    }
    out.options.retain(|o| o.name != "inherit");
    if sources.is_empty() {
        return out;
    }
    let mut copied: Vec<Opt> = Vec::new();
    let mut seen: BTreeSet<String> = [stanza.name.clone()].into();
    sources.reverse();
    while let Some(name) = sources.pop() {
        if !seen.insert(name.clone()) {
            continue;
        }
        let fits = |s: &&Stanza| {
            s.name == name
                && (out.family.is_empty() || s.family.is_empty() || s.family == out.family)
        };
        let Some(template) = parsed.stanzas.iter().find(fits) else {
            let message = format!("inherits from {name}, which no stanza describes");
            reading.warn(
                stanza.place.path.as_bytes(),
                Some(stanza.place.line),
                message,
            );
            continue;
        };
        if out.family.is_empty() {
            out.family = template.family.clone();
            out.method = template.method.clone();
        }
        let take = template.options.len().min(*budget);
        *budget = budget.saturating_sub(take);
        copied.extend(
            template
                .options
                .iter()
                .filter(|o| o.name != "inherit")
                .take(take)
                .cloned(),
        );
        sources.extend(template.inherits.iter().rev().cloned());
        if copied.len() > MAX_INHERITED {
            break;
        }
    }
    let own: BTreeSet<&str> = stanza.options.iter().map(|o| o.name.as_str()).collect();
    copied.retain(|option| {
        let twice = own.contains(option.name.as_str()) && !is_list(&option.name);
        if twice {
            let message = format!(
                "{} is inherited and set again: ifupdown joins the two values, which fails",
                option.raw
            );
            reading.warn(
                stanza.place.path.as_bytes(),
                Some(stanza.place.line),
                message,
            );
            reading.mark(
                option.place.source,
                option.place.range.clone(),
                State::Rejected,
            );
        }
        !twice
    });
    copied.append(&mut out.options);
    out.options = copied;
    out
}

/// A stanza only mappings and other stanzas use: no interface of its own.
pub(super) fn logical_stanza(reading: &mut Reading<'_>, stanza: &Stanza) {
    let mut options = serde_json::Map::new();
    for option in &stanza.options {
        let place = &option.place;
        let hook = HOOKS.contains(&option.name.as_str());
        if is_secret(&option.name) || hook {
            unmapped(
                reading,
                place,
                Some(&stanza.name),
                Some(&option.raw),
                &option.value,
                Effect::Script,
            );
            reading.mark(place.source, place.range.clone(), State::Unmapped);
            continue;
        }
        let slot = options
            .entry(option.raw.clone())
            .or_insert_with(|| json!([]));
        if let Some(values) = slot.as_array_mut() {
            values.push(option.value.clone().into());
        }
        reading.mark(place.source, place.range.clone(), State::Mapped);
    }
    let mut entry = serde_json::Map::new();
    entry.insert("type".into(), "logical".into());
    for (key, value) in [("family", &stanza.family), ("method", &stanza.method)] {
        if !value.is_empty() {
            entry.insert(key.into(), value.clone().into());
        }
    }
    if !options.is_empty() {
        entry.insert("options".into(), Value::Object(options));
    }
    let mut id = stanza.name.clone();
    // Two families of one name.
    if reading
        .document
        .guest
        .devices
        .contains_key(&Natural(id.clone()))
    {
        id = format!("{id}/{}", stanza.family);
    }
    reading
        .document
        .guest
        .devices
        .insert(Natural(id), Value::Object(entry));
}
