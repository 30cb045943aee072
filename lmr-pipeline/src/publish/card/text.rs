//! Text from strangers in Markdown and YAML.

/// A longer name is cut off.
const MAX_TEXT: usize = 200;

/// One line of at most 200 characters, what does not print written out: safe in a terminal and as a string of YAML.
pub fn plain(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(MAX_TEXT) {
        if prints(c) { out.push(c) } else { out.extend(c.escape_unicode()) }
    }
    if text.chars().nth(MAX_TEXT).is_some() {
        out.push('…');
    }
    out
}

/// [`plain`] text in which nothing is Markdown or HTML, also in a table; not for the beginning of a line.
pub fn markdown(text: &str) -> String {
    let mut out = String::new();
    for c in plain(text).chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '#' | '!' | '|' | '~' | ':' | '@' => out.extend(['\\', c]),
            _ => out.push(c),
        }
    }
    out
}

/// [`plain`] text as code, also in a table.
pub fn code(text: &str) -> String {
    format!("`{}`", plain(text).replace('`', "'").replace('|', "\\|"))
}

/// Neither a control character nor one that reorders or hides text.
fn prints(c: char) -> bool {
    let hidden = matches!(c, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff0}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}');
    !c.is_control() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_markup() {
        assert_eq!(markdown("T-shirt/top"), "T-shirt/top");
        assert_eq!(markdown("<img src=x> | [a](b)"), "&lt;img src=x&gt; \\| \\[a\\](b)");
        assert_eq!(plain("a\n---\u{1b}[2J\u{202e}"), "a\\u{a}---\\u{1b}[2J\\u{202e}");
        assert_eq!(code("a`|b"), "`a'\\|b`");
        assert_eq!(plain(&"x".repeat(500)).chars().count(), 201);
    }
}
