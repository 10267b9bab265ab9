//! The comparison that other tests rely on sees differences.

mod support;

use support::walk::{Ignore, assert_equal, walk_host};

#[test]
fn a_walk_equals_itself_and_sees_a_change() {
    let dir = support::workdir();
    support::shell(
        dir.path(),
        "mkdir -p t/d; echo hello > t/d/f; ln t/d/f t/g; ln -s f t/d/l; truncate -s 1M t/hole; \
         printf x | dd of=t/hole bs=1 seek=70000 conv=notrunc 2>/dev/null; mkfifo t/p",
    );
    let root = dir.path().join("t");
    let first = walk_host(&root);
    assert_eq!(first.len(), 7);
    // Walking reads, and reading may move access times.
    let ignore = Ignore {
        atime: true,
        ctime: true,
        ..Ignore::default()
    };
    assert_equal("unchanged", &first, &walk_host(&root), ignore);
    std::fs::write(root.join("d/f"), "hallo\n").unwrap();
    let changed = walk_host(&root);
    let seen = std::panic::catch_unwind(|| {
        assert_equal("changed", &first, &changed, ignore);
    });
    assert!(seen.is_err());
}
