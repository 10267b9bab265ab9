//! The `guestlens` binary: everything it does is in [`guestlens::cli`].

fn main() -> std::process::ExitCode {
    guestlens::cli::main()
}
