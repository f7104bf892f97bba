//! The environment file of a volume: variables for the applications, and where their definition files are (CD-7).
//!
//! ```text
//! # a comment                      KAGAMI_DBMS=/DB/vol1/dbms.toml
//! export PGDATA="/DB/vol1/data"    KAGAMI_APPLICATION='/AP/vol1/applications.toml'
//! CONF=${PGDATA}/conf              KAGAMI_ENV_FILES=/AP/vol1/more.env
//! ```
//!
//! The file comes from another site, so it is read as hostile: bounded, nothing in it is run, and a variable that would
//! change which program or library is loaded is refused.

use crate::base::{Error, Result};
use std::collections::BTreeMap;

/// Names the definition file of the DBMS, or the directory that holds it as [`DBMS_FILE`].
pub const DBMS: &str = "KAGAMI_DBMS";
/// Names the definition file of the application, or the directory that holds it as [`APPLICATION_FILE`].
pub const APPLICATION: &str = "KAGAMI_APPLICATION";
/// Names further environment files, with `:` between them.
pub const ENV_FILES: &str = "KAGAMI_ENV_FILES";
/// Definition file in a directory named by [`DBMS`] (CD-14).
pub const DBMS_FILE: &str = "dbms.toml";
/// Definition file in a directory named by [`APPLICATION`] (CD-14).
pub const APPLICATION_FILE: &str = "applications.toml";

/// Longest file, bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 10;
/// Most variables, of all files together.
pub const KEYS_MAX: usize = 1000;
/// Longest value, bytes: what one argument of a program may have is more.
pub const VALUE_BYTES_MAX: usize = 16 << 10;
/// All values together, bytes: well below what execve(2) takes.
pub const TOTAL_BYTES_MAX: usize = 512 << 10;
/// Longest name, bytes.
const NAME_BYTES_MAX: usize = 128;

/// A variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Var {
    /// Its value.
    pub value: String,
    /// Where it was set last: `FILE:LINE`.
    pub source: String,
}

/// The variables read so far.
pub type Vars = BTreeMap<String, Var>;

/// Variables that decide which code is loaded, by whole name. Everything a program loads by them could come from the
/// volume, so that allowing one program would allow any.
const REFUSED: &[&str] = &[
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SHELL",
    "ENV",
    "IFS",
    "CDPATH",
    "PS4",
    "SHELLOPTS",
    "PROMPT_COMMAND",
    "GLOBIGNORE",
    "GCONV_PATH",
    "LOCPATH",
    "NLSPATH",
    "GETCONF_DIR",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "RES_OPTIONS",
    "RESOLV_HOST_CONF",
    "TZDIR",
    "TMPDIR",
    "NIS_PATH",
    "CLASSPATH",
    "JAVA_TOOL_OPTIONS",
    "_JAVA_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "JAVA_HOME",
    "PHPRC",
    "PHP_INI_SCAN_DIR",
    "TCLLIBPATH",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "BROWSER",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "MAINPID",
    "OPENSSL_CONF",
    "OPENSSL_MODULES",
    "OPENSSL_ENGINES",
    "SSLKEYLOGFILE",
];
/// The same, by the beginning of the name: the loader, the C library, shells, interpreters.
const REFUSED_PREFIXES: &[&str] = &[
    "LD_",
    "DYLD_",
    "GLIBC_",
    "MALLOC_",
    "BASH",
    "ZDOTDIR",
    "PYTHON",
    "PERL",
    "RUBY",
    "GEM_",
    "NODE_",
    "NPM_",
    "LUA_",
    "GUILE_",
    "GIT_",
    "SUDO_",
    "DOTNET_",
    "COREHOST_",
    "R_PROFILE",
    "R_ENVIRON",
    "JULIA_",
    "ERL_",
];

/// Why a variable is not taken from a volume. `allowed`: what the site file allows all the same.
pub fn refused(name: &str, allowed: &[String]) -> Option<String> {
    let how = if name.starts_with("KAGAMI_") && ![DBMS, APPLICATION, ENV_FILES].contains(&name) {
        return Some(format!(
            "names that begin with KAGAMI_ are kagami's own; write {DBMS}, {APPLICATION}, {ENV_FILES} or another name instead"
        ));
    } else if REFUSED.contains(&name) || REFUSED_PREFIXES.iter().any(|p| name.starts_with(p)) {
        "it changes which code a program loads or where it looks for it"
    } else {
        return None;
    };
    match allowed.iter().any(|a| a == name) {
        true => None,
        false => {
            Some(format!("{how}; if this site may take it, write env = [{name:?}] into [launch] of its site file"))
        }
    }
}

/// True for a name that a variable may have.
pub fn is_name(name: &str) -> bool {
    let first = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    first && name.len() <= NAME_BYTES_MAX && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// A character that text from another site must not have: it would break a line or hide what stands there.
pub fn invisible(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{e0000}'..='\u{e007f}')
}

/// Reads the text of an environment file into `vars`; a later line replaces an earlier one. `file` is what errors begin
/// with; `allowed` are names that the site file allows. All errors are [`crate::base::Kind::Config`] and begin with `FILE:LINE: `.
pub fn parse(file: &str, text: &[u8], allowed: &[String], vars: &mut Vars) -> Result<()> {
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(Error::config(format!(
            "{file}:1: an environment file has at most {FILE_BYTES_MAX} bytes, not {}; write a shorter one",
            text.len()
        )));
    }
    let line_of = |at: usize| text.get(..at).map_or(1, |t| t.iter().filter(|b| **b == b'\n').count() + 1);
    let text = std::str::from_utf8(text).map_err(|e| {
        Error::config(format!("{file}:{}: not UTF-8; write it in UTF-8 instead", line_of(e.valid_up_to())))
    })?;
    for (i, line) in text.split('\n').enumerate() {
        let source = format!("{file}:{}", i + 1);
        let at = |e: String| Error::config(format!("{source}: {e}"));
        let line = line.strip_suffix('\r').unwrap_or(line);
        if let Some(c) = line.chars().find(|c| invisible(*c) && *c != '\t') {
            return Err(at(format!("a character that cannot be seen (U+{:04X}); remove it", u32::from(c))));
        }
        let Some((name, value)) = assignment(line, vars).map_err(at)? else { continue };
        if let Some(why) = refused(&name, allowed) {
            return Err(at(format!("{name} is not taken from a volume: {why}")));
        }
        vars.insert(name, Var { value, source: source.clone() });
        if vars.len() > KEYS_MAX {
            return Err(at(format!("more than {KEYS_MAX} variables; write fewer")));
        }
        let total: usize = vars.iter().map(|(k, v)| k.len() + v.value.len()).sum();
        if total > TOTAL_BYTES_MAX {
            return Err(at(format!(
                "the variables have more than {TOTAL_BYTES_MAX} bytes together; write shorter ones"
            )));
        }
    }
    Ok(())
}

/// One line: `None` for an empty one and a comment.
fn assignment(line: &str, vars: &Vars) -> std::result::Result<Option<(String, String)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let bare = line.strip_prefix("export").filter(|l| l.starts_with([' ', '\t'])).map_or(line, str::trim_start);
    let Some((name, value)) = bare.split_once('=') else {
        return Err(format!("{:?} is no assignment; write NAME=VALUE instead", clip(bare)));
    };
    if !is_name(name) {
        return Err(format!(
            "{:?} is no name of a variable; write letters, digits and _ (at most {NAME_BYTES_MAX}), no space before the =, instead",
            clip(name)
        ));
    }
    let value = value_of(value, vars)?;
    if value.len() > VALUE_BYTES_MAX {
        return Err(format!("{name} has more than {VALUE_BYTES_MAX} bytes; write a shorter value"));
    }
    Ok(Some((name.to_owned(), value)))
}

fn clip(s: &str) -> String {
    s.chars().take(40).collect()
}

/// A value: bare, in '…' (as it is) or in "…" (with `\` and `${NAME}`).
fn value_of(text: &str, vars: &Vars) -> std::result::Result<String, String> {
    let mut chars = text.chars();
    let quote = match text.chars().next() {
        Some(q @ ('\'' | '"')) => {
            chars.next();
            Some(q)
        }
        Some(' ' | '\t') if !text.trim().is_empty() && !text.trim_start().starts_with('#') => {
            return Err("a space after the =; write NAME=VALUE, or NAME=\" VALUE\" if it belongs to the value".into());
        }
        _ => None,
    };
    let mut out = String::new();
    let mut closed = false;
    let mut space = true;
    while let Some(c) = chars.next() {
        match (quote, c) {
            (Some(q), c) if c == q => {
                closed = true;
                break;
            }
            (Some('\''), c) => out.push(c),
            (None, '#') if space => break,
            (None, '\'' | '"') => return Err("a quote within a value; put the whole value into quotes".into()),
            (_, '`') => return Err("nothing is run here: ` has no meaning; write '…' around the value".into()),
            (_, '\\') => out.push(escape(chars.next())?),
            (_, '$') => reference(&mut chars, vars, &mut out)?,
            (_, c) => out.push(c),
        }
        if out.len() > VALUE_BYTES_MAX {
            return Err(format!("a value has at most {VALUE_BYTES_MAX} bytes; write a shorter one"));
        }
        space = c == ' ' || c == '\t';
    }
    if let Some(q) = quote {
        let rest = chars.as_str().trim();
        if !closed {
            return Err(format!("the {q} is not closed; close it on the same line"));
        }
        if !rest.is_empty() && !rest.starts_with('#') {
            return Err(format!("{:?} stands after the closing {q}; put the whole value into quotes", clip(rest)));
        }
        return Ok(out);
    }
    Ok(out.trim_end().to_owned())
}

fn escape(c: Option<char>) -> std::result::Result<char, String> {
    match c {
        Some(c @ ('\\' | '"' | '\'' | '$' | '`' | '#' | ' ')) => Ok(c),
        _ => Err("\\ stands before one of \\ \" ' $ ` # only; write '…' around the value to keep it as it is".into()),
    }
}

/// `${NAME}` after its `$`.
fn reference(chars: &mut std::str::Chars<'_>, vars: &Vars, out: &mut String) -> std::result::Result<(), String> {
    let rest = chars.as_str();
    if rest.starts_with('(') {
        return Err("nothing is run here: $(…) has no meaning; write the value itself".into());
    }
    let Some((name, after)) = rest.strip_prefix('{').and_then(|r| r.split_once('}')) else {
        return Err("$ stands before {NAME} only; write ${NAME}, or \\$ for the character".into());
    };
    if !is_name(name) {
        return Err(format!("${{{}}} names no variable; write ${{NAME}}", clip(name)));
    }
    match vars.get(name) {
        Some(v) => out.push_str(&v.value),
        None => return Err(format!("{name} is not set above this line; set it first")),
    }
    *chars = after.chars();
    Ok(())
}

/// Replaces every `${NAME}` in a text of a definition file; `$${` stands for `${`. The error says what is wrong.
pub fn expand(text: &str, vars: &Vars) -> std::result::Result<String, String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some(i) = rest.find("${") {
        let (before, from) = rest.split_at(i);
        let tail = from.get(2..).unwrap_or_default();
        rest = if let Some(kept) = before.strip_suffix('$') {
            out.push_str(kept);
            out.push_str("${");
            tail
        } else {
            out.push_str(before);
            let Some((name, after)) = tail.split_once('}').filter(|(n, _)| is_name(n)) else {
                return Err("${ begins the name of a variable; write ${NAME}, or $${ for the characters".into());
            };
            let v = vars.get(name).ok_or_else(|| {
                format!("{name} is not set in the environment file; set it there, or write the value itself")
            })?;
            out.push_str(&v.value);
            after
        };
        if out.len() > VALUE_BYTES_MAX {
            return Err(format!("more than {VALUE_BYTES_MAX} bytes after the variables are put in; write less"));
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// A value as it is written in an environment file, so that [`parse`] reads it back.
pub fn quote(value: &str) -> String {
    let mut out = String::from("\"");
    for c in value.chars() {
        if matches!(c, '"' | '\\' | '$' | '`') {
            out.push('\\');
        }
        out.push(c);
    }
    out.push('"');
    out
}

#[cfg(test)]
#[path = "env_tests.rs"]
mod tests;
