//! The dependencies as they are resolved: nothing switches logging off, and their number stays one
//! that a person can look through.

use std::process::Command;

/// Distinct crates in a normal (not build-time only, not test-time) build of the binary. Raise it
/// together with the reason for the new dependency in docs/architecture.md.
const MOST_NORMAL_DEPENDENCIES: usize = 135;

/// `cargo tree` of what the binary is made of, one dependency a line.
fn tree(arguments: &[&str]) -> String {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args([
            "tree",
            "--locked",
            "--offline",
            "--color=never",
            "--prefix=none",
        ])
        .args(arguments)
        .output()
        .expect("cargo runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// `log` and `tracing` have features that remove messages at compile time, and a dependency that
/// asks for one removes them for the whole program.
#[test]
fn no_dependency_switches_logging_off() {
    let features = tree(&["--edges=normal,features"]);
    assert!(
        features.contains("fuser feature") || features.contains("fuser v"),
        "{features}"
    );
    let wrong: Vec<&str> = features
        .lines()
        .filter(|line| line.contains("max_level_") && line.contains("feature"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_dependencies_can_be_looked_through() {
    let all = tree(&["--edges=normal", "--no-dedupe"]);
    let mut names: Vec<&str> = all
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    names.sort_unstable();
    names.dedup();
    assert!(
        names.contains(&"fuser") && names.contains(&"zerocopy"),
        "{all}"
    );
    assert!(
        names.len() <= MOST_NORMAL_DEPENDENCIES,
        "{} normal dependencies: {names:?}",
        names.len()
    );
    for never in ["tokio", "async-std", "openssl-sys", "qcow2-rs", "ext4-view"] {
        assert!(
            !names.contains(&never),
            "{never} is no dependency of the binary"
        );
    }
}
