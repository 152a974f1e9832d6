//! Input of the user: passwords, answers to questions and message texts, from the terminal or from standard input.
//!
//! All functions block the only thread. That is intended: there is no other work until they return.

use std::io::{self, BufRead as _, IsTerminal as _, Read as _, Write as _};

use crate::failure::Failure;
use chat::limits;

/// Reads a password, from the terminal without echo or from the first line of standard input. On a terminal, `confirm`
/// asks for it twice.
pub(crate) fn read_password(confirm: bool) -> Result<String, Failure> {
    prompt_password("Password: ", confirm)
}

/// Like [`read_password`], with a given prompt. A further call reads the next line of standard input.
pub(crate) fn prompt_password(prompt: &str, confirm: bool) -> Result<String, Failure> {
    if !io::stdin().is_terminal() {
        return read_line(limits::PASSWORD_BYTES_MAX + 2);
    }
    let password = rpassword::prompt_password(prompt)?;
    if confirm && rpassword::prompt_password("Once more: ")? != password {
        return Err(Failure::Usage("the two passwords differ".to_owned()));
    }
    Ok(password)
}

/// Asks on the terminal, or reads piped input.
pub(crate) fn ask(question: &str) -> Result<String, Failure> {
    write!(io::stderr().lock(), "{question}")?;
    read_line(limits::USERNAME_CHARS_MAX + 2)
}

/// Reads a message from the terminal or from standard input, up to its end, without the last line break, which shells
/// add.
pub(crate) fn read_text() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    if io::stdin().is_terminal() {
        writeln!(io::stderr().lock(), "Text of the message, and Ctrl-D on a new line:")?;
    }
    io::stdin().lock().take(limits::BODY_BYTES_MAX as u64 + 2).read_to_end(&mut bytes)?;
    let mut text = String::from_utf8(bytes).map_err(|_| Failure::Usage("body: the text is not UTF-8".to_owned()))?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text)
}

/// Reads one line, without its line break.
fn read_line(bytes_max: usize) -> Result<String, Failure> {
    let mut line = String::new();
    io::stdin().lock().take(bytes_max as u64 + 1).read_line(&mut line)?;
    let line = line.strip_suffix('\n').unwrap_or(&line);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}
