//! The code base checks itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Layers from the lowest to the highest. A layer may use itself and those before it.
const LAYERS: [&[&str]; 11] = [
    &["limits", "ondisk"],
    &["crypto"],
    &["block"],
    &["remote"],
    // Side by side: an image format knows no volumes and the other way round.
    &["formats", "volumes"],
    &["fs"],
    &["guest"],
    &["inspect", "network"],
    &["meta"],
    &["tree"],
    &["fuse"],
];

/// May use everything.
const TOP: [&str; 3] = ["cli", "main", "lib"];

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
}

/// Names right after `crate::` anywhere in the code, also inside `crate::{a, b::c}`.
fn crate_names(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut word, mut fresh) = (1, String::new(), true);
            for c in group.chars() {
                match c {
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
                if fresh && (c.is_alphanumeric() || c == '_') {
                    word.push(c);
                } else if depth <= 1 {
                    if !word.is_empty() {
                        names.insert(std::mem::take(&mut word));
                    }
                    fresh = c == ',' || (fresh && c.is_whitespace());
                }
                if depth == 0 {
                    break;
                }
            }
        } else {
            names.insert(
                rest.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect(),
            );
        }
    }
    names
}

/// Code without comments, so that documentation may point upwards.
fn code(text: &str) -> String {
    text.lines()
        .map(|l| l.split("//").next().unwrap_or(""))
        .collect::<Vec<_>>()
        .join("\n")
}

fn upward_uses(layer: &str, text: &str) -> Vec<String> {
    let Some(level) = LAYERS.iter().position(|names| names.contains(&layer)) else {
        return vec![format!("{layer} is no known layer")];
    };
    let modules: BTreeSet<&str> = LAYERS
        .iter()
        .flat_map(|l| l.iter().copied())
        .chain(TOP)
        .collect();
    crate_names(&code(text))
        .into_iter()
        .filter(|name| modules.contains(name.as_str()))
        .filter(|name| {
            let below = LAYERS[..level].iter().any(|l| l.contains(&name.as_str()));
            !(below || name == layer)
        })
        .collect()
}

#[test]
fn no_layer_uses_a_higher_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(files.len() > 20, "the sources were not found");
    let mut wrong = Vec::new();
    for file in files {
        let inside = file.strip_prefix(&root).unwrap();
        let layer = inside
            .components()
            .next()
            .unwrap()
            .as_os_str()
            .to_string_lossy();
        let layer = layer.trim_end_matches(".rs");
        if TOP.contains(&layer) {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        for name in upward_uses(layer, &text) {
            wrong.push(format!("{} uses crate::{name}", inside.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_check_sees_upward_uses() {
    assert_eq!(upward_uses("fs", "use crate::guest::Guest;"), ["guest"]);
    assert_eq!(
        upward_uses("fs", "use crate::{block::X, tree::{A, B}, ondisk};"),
        ["tree"]
    );
    assert_eq!(
        upward_uses("formats", "use crate::volumes::Table;"),
        ["volumes"]
    );
    assert!(upward_uses("guest", "use crate::fs::X; // crate::tree").is_empty());
}

#[test]
fn no_drawers_without_a_subject() {
    let mut files = Vec::new();
    sources(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
        &mut files,
    );
    for file in files {
        let stem = file.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            !["utils", "util", "helpers", "common", "misc", "prelude"].contains(&stem.as_str()),
            "{}",
            file.display()
        );
    }
}
