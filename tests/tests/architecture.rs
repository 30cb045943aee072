//! The rooms of each library import one another in one direction only: no module needs a module that needs it.
//!
//! A room is a top-level module of a crate; within a room the same must hold for its files and folders. What counts are paths that
//! begin with `crate::` or `super::`, wherever they stand, tests and comments aside. A name that a room re-exports counts for the
//! module it comes from; at the top of a crate it does not, where `Error` has one variant a room and every room returns it.
#![allow(clippy::unwrap_used, reason = "the helpers of these tests fail the test that called them")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use rstest::rstest;

/// From each module to those it names, with a file that does.
type Imports = BTreeMap<String, BTreeMap<String, PathBuf>>;

/// The text without comments, strings and unit tests: what is left has the paths.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let (mut out, mut rest) = (String::new(), text);
    while let Some(at) = rest.find(['/', '"', '\'']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with('"') {
            end_of_string(rest)
        } else {
            out.push_str(&rest[..1]);
            // A quote in quotes.
            if rest.starts_with("'\"'") { 3 } else { 1 }
        };
        rest = &rest[skip..];
    }
    out + rest
}

/// Behind the closing quote of the string that `text` begins with.
fn end_of_string(text: &str) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The paths that follow `prefix` in `code`, as lists of names: `crate::{a, b::c}` has two.
fn paths(code: &str, prefix: &str) -> Vec<Vec<String>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices(prefix) {
        let inside = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
        if code[..at].ends_with(inside) {
            continue;
        }
        collect(&code[at + prefix.len()..], &[], &mut found);
    }
    found
}

/// Reads a path, or a list of them in braces, as far as it goes; returns what is left.
fn collect<'a>(text: &'a str, above: &[String], found: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = collect(rest, above, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) => rest = more,
                None => return rest.strip_prefix('}').unwrap_or(rest),
            }
        }
    }
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    if name.is_empty() {
        return rest;
    }
    let path = [above, &[name.to_string()]].concat();
    match rest.strip_prefix("::") {
        Some(more) => collect(more, &path, found),
        None => {
            found.push(path);
            // `use a as b`.
            let renamed = rest
                .trim_start()
                .strip_prefix("as ")
                .map(|name| name.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'));
            renamed.unwrap_or(rest)
        }
    }
}

/// Every source file below `folder`, tests aside, with the path of its module.
fn modules(folder: &Path, above: &[String], found: &mut Vec<(Vec<String>, PathBuf)>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            modules(&path, &[above, std::slice::from_ref(&name)].concat(), found);
            continue;
        }
        let Some(name) = name.strip_suffix(".rs") else { continue };
        let module = if matches!(name, "mod" | "lib") { above.to_vec() } else { [above, &[name.to_string()]].concat() };
        if !module.iter().any(|part| matches!(part.as_str(), "tests" | "fixture" | "main")) {
            found.push((module, path));
        }
    }
}

/// The children of a room that re-exported names come from.
fn reexports(files: &[(Vec<String>, PathBuf)], room: &[String]) -> BTreeMap<String, String> {
    let own = files.iter().filter(|(module, _)| module == room && !room.is_empty());
    let text: String = own.map(|(_, file)| code(&std::fs::read_to_string(file).unwrap())).collect();
    let uses = ["pub use ", "pub(super) use ", "pub(crate) use "].map(|prefix| paths(&text, prefix)).concat();
    let named = uses.into_iter().filter(|path| path.len() > 1 && !matches!(path[0].as_str(), "crate" | "super"));
    named.map(|path| (path[path.len() - 1].clone(), path[0].clone())).collect()
}

/// Who imports whom among the children of the module `room`.
fn imports(files: &[(Vec<String>, PathBuf)], room: &[String]) -> Imports {
    let (mut imports, reexports) = (Imports::new(), reexports(files, room));
    for (module, file) in files.iter().filter(|(module, _)| module.len() > room.len() && module.starts_with(room)) {
        let child = &module[room.len()];
        let text = code(&std::fs::read_to_string(file).unwrap());
        let absolute = paths(&text, "crate::");
        let relative = (1..=module.len()).flat_map(|up| {
            let base = module[..module.len() - up].to_vec();
            let paths = paths(&text, &"super::".repeat(up)).into_iter().filter(|path| path[0] != "super");
            paths.map(move |path| [base.clone(), path].concat()).collect::<Vec<_>>()
        });
        for path in absolute.into_iter().chain(relative) {
            let Some(named) = path.get(room.len()).filter(|_| path.starts_with(room)) else { continue };
            let named = reexports.get(named).unwrap_or(named);
            if named != child {
                imports.entry(child.clone()).or_default().entry(named.clone()).or_insert(file.clone());
            }
        }
    }
    // Names of things in the room itself are no modules.
    let children: BTreeSet<String> = imports.keys().cloned().collect();
    imports.values_mut().for_each(|named| named.retain(|name, _| children.contains(name)));
    imports
}

/// A way from a module back to itself, if there is one, as lines to read.
fn cycle(imports: &Imports) -> Option<Vec<String>> {
    fn search<'a>(at: &'a str, imports: &'a Imports, way: &mut Vec<&'a str>, done: &mut BTreeSet<&'a str>) -> bool {
        if let Some(start) = way.iter().position(|seen| *seen == at) {
            way.drain(..start);
            return true;
        }
        if !done.insert(at) {
            return false;
        }
        way.push(at);
        let next = imports.get(at).into_iter().flat_map(BTreeMap::keys);
        for next in next {
            if search(next, imports, way, done) {
                return true;
            }
        }
        way.pop();
        false
    }
    let mut done = BTreeSet::new();
    for start in imports.keys() {
        let mut way = Vec::new();
        if search(start, imports, &mut way, &mut done) {
            let next = way.iter().cycle().skip(1);
            let line = |(from, to): (&&str, &&str)| format!("{from} -> {to} in {}", imports[*from][*to].display());
            return Some(way.iter().zip(next).map(line).collect());
        }
    }
    None
}

/// Every module that has children, the crate itself first.
fn rooms(files: &[(Vec<String>, PathBuf)]) -> BTreeSet<Vec<String>> {
    files.iter().flat_map(|(module, _)| (0..module.len()).map(|depth| module[..depth].to_vec())).collect()
}

#[rstest]
#[case::layers("lmr-plugin/nn/src")]
#[case::plugin("lmr-plugin/src")]
#[case::pipeline("lmr-pipeline/src")]
#[case::command_line("xtask/src")]
fn modules_import_one_another_in_one_direction(#[case] source: &str) {
    let mut files = Vec::new();
    modules(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(source), &[], &mut files);
    assert!(files.len() > 5, "{source} has sources");
    for room in rooms(&files) {
        if let Some(way) = cycle(&imports(&files, &room)) {
            panic!("a cycle in {source}, {}:\n{}", room.join("::"), way.join("\n"));
        }
    }
}

#[test]
fn paths_are_found_wherever_they_stand() {
    let text = "use crate::{a::{B, c::D}, e as f, g};\n// crate::comment\nlet x = \"crate::string\"; crate::h::i(super::j::K);\n\
                '\"'; crate::l;\n#[cfg(test)]\nmod tests { use crate::m; }";
    let code = code(text);
    let first: Vec<String> = paths(&code, "crate::").into_iter().map(|path| path.join("::")).collect();
    assert_eq!(first, ["a::B", "a::c::D", "e", "g", "h::i", "l"]);
    assert_eq!(paths(&code, "super::"), [["j", "K"]]);
}

#[rstest]
#[case(&[("a", "b"), ("b", "c")], None)]
#[case(&[("a", "b"), ("b", "c"), ("c", "b")], Some("b -> c"))]
#[case(&[("a", "b"), ("c", "d"), ("d", "e"), ("e", "c")], Some("c -> d"))]
fn cycles_are_found(#[case] arrows: &[(&str, &str)], #[case] expected: Option<&str>) {
    let mut imports = Imports::new();
    for (from, to) in arrows {
        imports.entry(from.to_string()).or_default().insert(to.to_string(), "file".into());
        imports.entry(to.to_string()).or_default();
    }
    let found = cycle(&imports).map(|way| way[0].clone());
    assert_eq!(found.is_some(), expected.is_some());
    assert!(expected.is_none_or(|expected| found.unwrap().starts_with(expected)));
}
