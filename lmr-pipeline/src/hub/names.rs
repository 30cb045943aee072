//! Names that become paths and URLs are checked first, whoever wrote them.

/// Refuses a path that could leave the folder it is meant for.
pub(crate) fn check_path(path: &str) -> Result<(), String> {
    let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':' | '?' | '#' | '%');
    if path.len() > 1024 || path.contains(odd) || !path.split('/').all(plain) {
        return Err(format!(
            "found {path:?}, expected a relative path with `/` and without `..`, backslashes, `:?#%` or control characters"
        ));
    }
    Ok(())
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

/// Refuses what is no full commit id.
pub(crate) fn check_revision(revision: &str) -> Result<(), String> {
    if is_hex(revision, 40) {
        return Ok(());
    }
    Err(format!("found {revision:?}, expected a commit: 40 lower-case hex digits (a branch or tag can move)"))
}

/// Whether `text` is `len` lower-case hexadecimal digits.
pub(crate) fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
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
    #[case("0123456", false)]
    #[case("main", false)]
    #[case("../../../../../../../../../../../../../..", false)]
    fn revisions(#[case] revision: &str, #[case] good: bool) {
        assert_eq!(check_revision(revision).is_ok(), good, "{revision:?}");
    }
}
