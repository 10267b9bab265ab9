//! `guestlens capabilities`: what this build can do, from the tables it works with.

use clap::{Args, CommandFactory as _, ValueEnum as _};
use serde_json::{Map, Value, json};

use crate::cli::args::Cli;
use crate::cli::command::convert::TargetFormat;
use crate::cli::exit::Exit;
use crate::cli::failure::Outcome;
use crate::cli::output::Output;
use crate::formats::detect::FORMATS;
use crate::fs::api::drivers;
use crate::network::codec;
use crate::remote;
use crate::volumes::TableKind;

/// How images may be encrypted: the first is written and made as well, the second only read.
const ENCRYPTION: [&str; 2] = ["qcow2-luks", "qcow2-aes-read-only"];

/// Arguments of `capabilities`.
#[derive(Args, Debug)]
#[command(after_help = "\
formats: images that are read; writes: those that are also written in place; converts-to: what convert
makes; remote: names of images on other hosts. Files inside a guest are never written.")]
pub struct CapabilitiesArgs {
    /// One JSON document
    #[arg(long)]
    pub json: bool,
}

/// Tells.
///
/// # Errors
/// Of writing.
pub fn run(args: &CapabilitiesArgs, out: &mut Output) -> Outcome {
    let verbs: Vec<String> = Cli::command()
        .get_subcommands()
        .filter(|c| !c.is_hide_set())
        .map(|c| c.get_name().to_owned())
        .collect();
    let lists = [
        (
            "formats",
            FORMATS.iter().map(|(name, _)| (*name).to_owned()).collect(),
        ),
        (
            "writes",
            FORMATS
                .iter()
                .filter(|(_, format)| format.writable())
                .map(|(name, _)| (*name).to_owned())
                .collect(),
        ),
        (
            "converts-to",
            TargetFormat::value_variants()
                .iter()
                .filter_map(|target| Some(target.to_possible_value()?.get_name().to_owned()))
                .collect(),
        ),
        (
            "encryption",
            ENCRYPTION.iter().map(|name| (*name).to_owned()).collect(),
        ),
        (
            "partition-tables",
            TableKind::ALL.iter().map(|k| k.name().to_owned()).collect(),
        ),
        (
            "filesystems",
            drivers().iter().map(|d| d.name().to_owned()).collect(),
        ),
        (
            "network",
            codec::NAMES.iter().map(|name| (*name).to_owned()).collect(),
        ),
        (
            "remote",
            remote::SCHEMES.iter().map(|s| (*s).to_owned()).collect(),
        ),
        ("verbs", verbs),
    ];
    if args.json {
        let mut object = Map::new();
        object.insert("version".into(), json!(env!("CARGO_PKG_VERSION")));
        for (name, list) in lists {
            object.insert(name.into(), json!(list));
        }
        out.json(&Value::Object(object))?;
    } else {
        out.line(format!("version: {}", env!("CARGO_PKG_VERSION")))?;
        for (name, list) in lists {
            out.line(format!("{name}: {}", list.join(" ")))?;
        }
    }
    Ok(Exit::Done)
}
