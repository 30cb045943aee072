//! Tables in a Markdown page, between a comment that says what they show and one that ends them:
//!
//! ```text
//! <!-- results
//! of = "quickstart"
//! -->
//! …
//! <!-- end of results -->
//! ```

/// How a table begins; options as TOML follow, up to `-->`.
const BEGIN: &str = "<!-- results";
/// How the options end.
const OPTIONS_END: &str = "-->";
/// How a table ends.
const END: &str = "<!-- end of results -->";

/// The page with every table as `draw` makes it of its options. What is between tables stays as it is.
pub fn rewrite(page: &str, draw: impl Fn(&str) -> Result<String, String>) -> Result<String, String> {
    let mut out = String::with_capacity(page.len());
    let mut rest = page;
    while let Some(begin) = beginning(rest) {
        let line = page[..page.len() - rest.len() + begin].matches('\n').count() + 1;
        let here = |message: String| format!("line {line}: {message}");
        let options = &rest[begin + BEGIN.len()..];
        let length = options.find(OPTIONS_END).ok_or_else(|| here(format!("`{BEGIN}` without `{OPTIONS_END}`")))?;
        let table = &options[length + OPTIONS_END.len()..];
        // A table that is not ended would swallow everything up to the end of the next one.
        let end = table.find(END).filter(|&end| beginning(table).is_none_or(|next| end < next));
        let end = end.ok_or_else(|| here(format!("`{BEGIN}` without `{END}`")))?;
        let drawn = draw(&options[..length]).map_err(here)?;
        out.push_str(&rest[..begin]);
        out.push_str(&format!("{BEGIN}{}{OPTIONS_END}\n\n{drawn}\n{END}", &options[..length]));
        rest = &table[end + END.len()..];
    }
    out.push_str(rest);
    Ok(out)
}

/// Where the next table begins: always at the beginning of a line.
fn beginning(text: &str) -> Option<usize> {
    let begins = |at: &usize| (*at == 0 || text[..*at].ends_with('\n')) && !text[*at + BEGIN.len()..].starts_with('`');
    text.match_indices(BEGIN).map(|(at, _)| at).find(begins)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn draw(options: &str) -> Result<String, String> {
        match options.trim() {
            "bad" => Err("bad options".into()),
            options => Ok(format!("table of {options}\n")),
        }
    }

    #[test]
    fn tables_are_replaced_and_the_rest_stays() {
        let page = "# Title\n\n<!-- results a -->\nold\n<!-- end of results -->\ntext `<!-- results` text\n\n\
            <!-- results\nb\n-->\n<!-- end of results -->\n";
        let expected = "# Title\n\n<!-- results a -->\n\ntable of a\n\n<!-- end of results -->\ntext `<!-- results` text\n\n\
            <!-- results\nb\n-->\n\ntable of b\n\n<!-- end of results -->\n";
        let written = rewrite(page, draw).unwrap();
        assert_eq!(written, expected);
        assert_eq!(rewrite(&written, draw).unwrap(), written);
        assert_eq!(rewrite("no table\n", draw).unwrap(), "no table\n");
    }

    #[rstest]
    #[case::no_end("\n<!-- results a -->\nold\n", "line 2: `<!-- results` without `<!-- end of results -->`")]
    #[case::end_of_another(
        "<!-- results a -->\n<!-- results b -->\n<!-- end of results -->\n",
        "line 1: `<!-- results` without"
    )]
    #[case::open_options("\n\n<!-- results a\n", "line 3: `<!-- results` without `-->`")]
    #[case::bad_options("x\n<!-- results bad -->\n<!-- end of results -->", "line 2: bad options")]
    fn what_is_broken_is_named(#[case] page: &str, #[case] expected: &str) {
        let message = rewrite(page, draw).unwrap_err();
        assert!(message.starts_with(expected), "{message}");
    }
}
