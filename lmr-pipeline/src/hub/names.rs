//! Names that become paths and URLs are checked first, whoever wrote them.

/// Refuses a path that could leave the folder it is meant for.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    if path.len() > 1024 || path.contains([':', '?', '#', '%']) || !is_below(path) {
        return Err(format!(
            "found {path:?}, expected a relative path with `/` and without `..`, backslashes, `:?#%` or control characters"
        ));
    }
    Ok(())
}

/// Whether a path stays in the folder it is meant for, on every system.
pub(crate) fn is_below(path: &str) -> bool {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    !path.contains(|c: char| c.is_control() || c == '\\') && path.split('/').all(plain)
}

/// Refuses what is no `owner/name`.
pub(crate) fn check_repo(repo: &str) -> Result<(), String> {
    let plain = |part: &str| {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        // `--` separates owner and name in the cache; the Hub refuses it and `..` as well.
        (1..=96).contains(&part.len())
            && part.bytes().all(allowed)
            && !part.starts_with(['-', '.'])
            && !part.ends_with(['-', '.'])
            && !part.contains("--")
            && !part.contains("..")
    };
    match repo.split_once('/') {
        Some((owner, name)) if plain(owner) && plain(name) => Ok(()),
        _ => Err(format!("found {repo:?}, expected \"owner/name\" of letters, digits, `-`, `_` and `.`")),
    }
}

/// Refuses what is neither a full commit id nor the plain name of a branch or tag.
pub(crate) fn check_revision(revision: &str) -> Result<(), String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let plain = (1..=100).contains(&revision.len())
        && revision.bytes().all(allowed)
        && !revision.starts_with(['-', '.'])
        // A commit in capitals: no branch, and not how the cache or the Hub spells it.
        && !is_hex(&revision.to_ascii_lowercase(), 40);
    if plain || is_hex(revision, 40) {
        return Ok(());
    }
    Err(format!(
        "found {revision:?}, expected a commit (40 lower-case hex digits), or a branch or tag of at most 100 letters, \
         digits, `-`, `_` and `.` that begins with neither `-` nor `.`"
    ))
}

/// Refuses what is no full commit id, whoever said it: of a wrong one, only the beginning is shown.
pub(crate) fn check_commit(commit: &str) -> Result<(), String> {
    if is_hex(commit, 40) {
        return Ok(());
    }
    let beginning: String = commit.chars().take(60).collect();
    Err(format!("found {beginning:?}, expected a commit: 40 lower-case hex digits"))
}

/// Whether `text` is `len` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Refuses what cannot be the Hub's name of a licence.
pub fn check_license(license: &str) -> Result<(), String> {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.+".contains(&byte);
    if (1..=64).contains(&license.len()) && license.bytes().all(fits) {
        return Ok(());
    }
    Err(format!("expected an identifier of the Hub such as `mit` or `apache-2.0`, found {license:?}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("train.parquet", true)]
    #[case("plain_text/train-00000-of-00001.parquet", true)]
    #[case("a..b/c", true)]
    #[case("", false)]
    #[case("../x", false)]
    #[case("a/../../x", false)]
    #[case("a/..", false)]
    #[case("./a", false)]
    #[case("/etc/passwd", false)]
    #[case("a//b", false)]
    #[case("a/", false)]
    #[case("a\\..\\b", false)]
    #[case("C:/x", false)]
    #[case("a\nb", false)]
    #[case("a\0", false)]
    #[case("a?token=1", false)]
    #[case("a%2e%2e/b", false)]
    fn paths(#[case] path: &str, #[case] good: bool) {
        assert_eq!(check_path(path).is_ok(), good, "{path:?}");
    }

    #[rstest]
    #[case("uoft-cs/cifar10", true)]
    #[case("zalando-datasets/fashion_mnist", true)]
    #[case("cifar10", false)]
    #[case("a/b/c", false)]
    #[case("../b", false)]
    #[case("a/..", false)]
    #[case("a--b/c", false)]
    #[case("/b", false)]
    #[case("a/", false)]
    #[case("a b/c", false)]
    fn repositories(#[case] repo: &str, #[case] good: bool) {
        assert_eq!(check_repo(repo).is_ok(), good, "{repo:?}");
    }

    #[rstest]
    #[case("0123456789abcdef0123456789abcdef01234567", true)]
    #[case("0123456789ABCDEF0123456789abcdef01234567", false)]
    #[case("main", true)]
    #[case("v1.0-rc_2", true)]
    #[case("0123456", true)]
    #[case(&"a".repeat(100), true)]
    #[case(&"a".repeat(101), false)]
    #[case("", false)]
    #[case(".", false)]
    #[case("..", false)]
    #[case(".hidden", false)]
    #[case("-f", false)]
    #[case("../x", false)]
    #[case("refs/convert/parquet", false)]
    #[case("a\\b", false)]
    #[case("a b", false)]
    #[case("main\n", false)]
    #[case("a%2fb", false)]
    #[case("zweig-ä", false)]
    #[case("../../../../../../../../../../../../../..", false)]
    fn revisions(#[case] revision: &str, #[case] good: bool) {
        assert_eq!(check_revision(revision).is_ok(), good, "{revision:?}");
    }

    #[rstest]
    #[case("100%.txt", true)]
    #[case("a/../b", false)]
    #[case("/etc/passwd", false)]
    #[case("a\\b", false)]
    fn odd_names_may_still_be_below(#[case] path: &str, #[case] below: bool) {
        assert_eq!(is_below(path), below);
    }

    #[test]
    fn a_wrong_commit_is_shown_in_part() {
        assert!(check_commit("0123456789abcdef0123456789abcdef01234567").is_ok());
        let fault = check_commit(&"\n\u{1b}".repeat(1000)).unwrap_err();
        assert!(fault.len() < 400 && !fault.contains('\u{1b}'), "{fault}");
    }
}
