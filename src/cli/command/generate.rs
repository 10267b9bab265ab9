//! `guestlens generate`: manual pages and shell completions, from the definition in `args`.

use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, ValueEnum};
use clap_complete::Shell;

use crate::cli::args::Cli;
use crate::cli::exit::Exit;
use crate::cli::failure::{Context as _, Outcome};
use crate::cli::output::Output;
use crate::cli::text::host_path;

/// What to write.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum What {
    /// Manual pages, section 1.
    Man,
    /// Completions for bash, fish and zsh.
    Completions,
}

/// Arguments of `generate`.
#[derive(Args, Debug)]
pub struct GenerateArgs {
    /// What to write
    pub what: What,

    /// Directory to write to; must exist
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
}

/// Writes the files and prints their paths.
///
/// # Errors
/// Of writing.
pub fn run(args: &GenerateArgs, out: &mut Output) -> Outcome {
    let written = match args.what {
        What::Man => manual(&args.dir),
        What::Completions => completions(&args.dir),
    }
    .context(|| host_path(&args.dir))?;
    for path in written {
        out.line(host_path(&path))?;
    }
    Ok(Exit::Done)
}

fn manual(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut written = Vec::new();
    let mut command = Cli::command();
    command.build();
    let mut pages = vec![(String::from("guestlens"), command.clone())];
    for verb in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        pages.push((format!("guestlens-{}", verb.get_name()), verb.clone()));
    }
    for (name, command) in pages {
        let path = dir.join(format!("{name}.1"));
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .title(name)
            .render(&mut page)?;
        std::fs::write(&path, page)?;
        written.push(path);
    }
    Ok(written)
}

fn completions(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    [Shell::Bash, Shell::Fish, Shell::Zsh]
        .into_iter()
        .map(|shell| clap_complete::generate_to(shell, &mut Cli::command(), "guestlens", dir))
        .collect()
}
