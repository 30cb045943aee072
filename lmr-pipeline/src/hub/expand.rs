//! Paths in variables as Python's client reads them: `expandvars(expanduser(path))`.

use std::path::Path;

/// Puts the home folder for a leading `~`, and values for `$NAME` and `${NAME}`. What is not known stays as it is, as in Python;
/// so does the home of another user.
pub fn expand(path: &str, variable: impl Fn(&str) -> Option<String>, home: Option<&Path>) -> String {
    let in_home = path.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with('/')).zip(home);
    let path = match in_home {
        Some((rest, home)) => format!("{}{rest}", home.display()),
        None => path.to_owned(),
    };
    let (mut expanded, mut rest) = (String::new(), path.as_str());
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at..];
        let (name, length) = name(&rest[1..]);
        match variable(name).filter(|_| !name.is_empty()) {
            Some(value) => expanded.push_str(&value),
            None => expanded.push_str(&rest[..1 + length]),
        }
        rest = &rest[1 + length..];
    }
    expanded + rest
}

/// The name that `text` begins with, in braces or not, and the length of both.
fn name(text: &str) -> (&str, usize) {
    if let Some((name, _)) = text.strip_prefix('{').and_then(|inside| inside.split_once('}')) {
        return (name, name.len() + 2);
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    (&text[..end], end)
}
