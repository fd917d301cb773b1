//! The `injector` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    injector_user::cli::main()
}
