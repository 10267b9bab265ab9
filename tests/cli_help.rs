//! The help of every verb, as it was last agreed on. `GUESTLENS_BLESS=1` writes it anew.

mod support;

use std::path::Path;

#[test]
fn help_is_as_agreed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help");
    let help = |args: &[&str]| {
        let out = support::run(support::guestlens().args(args).env("COLUMNS", "100"));
        String::from_utf8(out.stdout).unwrap()
    };
    let top = help(&["--help"]);
    let commands = top
        .split("Commands:")
        .nth(1)
        .and_then(|t| t.split("\n\n").next())
        .unwrap();
    let verbs: Vec<&str> = commands
        .lines()
        .filter(|l| l.starts_with("  ") && !l.starts_with("   "))
        .filter_map(|l| l.split_whitespace().next())
        .collect();
    assert!(verbs.len() > 10, "{verbs:?}");
    let mut texts = vec![("guestlens".to_owned(), top.clone())];
    texts.extend(
        verbs
            .iter()
            .map(|verb| ((*verb).to_owned(), help(&[verb, "--help"]))),
    );
    if std::env::var_os("GUESTLENS_BLESS").is_some() {
        std::fs::create_dir_all(&dir).unwrap();
        for (name, text) in &texts {
            std::fs::write(dir.join(format!("{name}.txt")), text).unwrap();
        }
    }
    for (name, text) in &texts {
        let agreed = std::fs::read_to_string(dir.join(format!("{name}.txt"))).unwrap_or_default();
        assert_eq!(
            &agreed, text,
            "help of {name} changed; GUESTLENS_BLESS=1 accepts it"
        );
    }
    let agreed = std::fs::read_dir(&dir).unwrap().count();
    assert_eq!(
        agreed,
        texts.len(),
        "tests/help has a text of a verb that is gone"
    );
}
