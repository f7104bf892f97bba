//! The program `kagami`: everything is in the library.

fn main() -> std::process::ExitCode {
    kagami::cli::main()
}
