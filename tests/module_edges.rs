//! The architecture's walls: which module may use which, and what must not stand in the source at all.
//!
//! Every path that begins with `crate::`, or climbs out of its module by `super::`, is resolved to the top-level module
//! that it reaches and looked up in [`ALLOWED`]. Comments and literals do not count. A refusal names file and line.
#![allow(clippy::unwrap_used, reason = "a test ends with a panic when its surroundings fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Who may use whom (`docs/ARCHITECTURE.md`). `*` stands for everything but `app` and `cli`.
const ALLOWED: [(&str, &[&str]); 16] = [
    ("model", &[]),
    ("contract", &["model"]),
    ("platform", &["model"]),
    ("telemetry", &["model", "platform"]),
    ("security", &["model", "platform", "telemetry"]),
    ("pipeline", &["model"]),
    // The contract only for the encoding of gap records.
    ("store", &["model", "platform", "telemetry", "contract"]),
    ("southbound", &["model", "platform", "security", "telemetry"]),
    ("northbound", &["model", "contract", "platform", "security", "telemetry"]),
    ("broker", &["model", "platform", "security", "telemetry"]),
    ("management", &["model", "contract", "platform", "telemetry"]),
    ("margo", &["model", "platform", "security", "telemetry"]),
    ("admin", &["model", "platform", "telemetry"]),
    ("config", &["*"]),
    ("app", &["*"]),
    ("cli", &["*", "app"]),
];

/// A file that long does two jobs.
const LONG: usize = 600;
const TOO_LONG: usize = 700;

#[test]
fn modules_use_only_what_the_architecture_allows() {
    let mut refused = Vec::new();
    for source in sources(&["src"]) {
        let Some(user) = source.module.first() else { continue };
        for (line, used) in edges(&source) {
            if used != *user && is_module(&used) && !is_allowed(user, &used) {
                refused.push(format!("{}:{line}: `{user}` may not use `{used}`", source.path.display()));
            }
        }
    }
    assert!(refused.is_empty(), "edges that docs/ARCHITECTURE.md does not allow:\n{}", refused.join("\n"));
}

#[test]
fn every_module_has_its_place_in_the_table() {
    let tops: BTreeSet<String> = sources(&["src"]).into_iter().filter_map(|s| s.module.first().cloned()).collect();
    let unknown: Vec<_> = tops.into_iter().filter(|top| !is_module(top)).collect();
    assert!(unknown.is_empty(), "add these modules to ALLOWED, with what they may use: {unknown:?}");
}

#[test]
fn forbidden_words_are_absent() {
    let everywhere = ["unsafe", "unbounded_channel", "unbounded"];
    let mut found = Vec::new();
    let sources = sources(&["src", "simulators/src", "simulators/tests", "tests", "benches"]);
    let test_modules: Vec<Vec<String>> = sources.iter().flat_map(test_modules).collect();
    for source in &sources {
        let path = source.path.display();
        let is_test = source.is_test() || test_modules.iter().any(|module| source.module.starts_with(module));
        let tokens = tokens(&source.text);
        for (index, token) in tokens.iter().enumerate() {
            let at = |offset: usize| tokens.get(index + offset).map_or("", |token| token.text.as_str());
            if everywhere.contains(&token.text.as_str()) {
                found.push(format!("{path}:{}: `{}`", token.line, token.text));
            }
            // What needs more than a checkout gives says so: `#[ignore = "needs …"]`.
            if (token.text.as_str(), at(1), at(2)) == ("#", "[", "ignore") && at(3) != "=" {
                found.push(format!("{path}:{}: an ignored test that does not say what it needs", token.line));
            }
            let unwraps = (token.text.as_str(), at(1), at(2), at(3)) == (".", "unwrap", "(", ")");
            if unwraps && !token.in_test && !is_test {
                found.push(format!("{path}:{}: `.unwrap()`; return an error, or `expect` an invariant", token.line));
            }
        }
    }
    assert!(found.is_empty(), "must not stand in the source:\n{}", found.join("\n"));
}

#[test]
fn files_stay_short() {
    let mut too_long = Vec::new();
    for source in sources(&["src", "simulators/src", "tests"]) {
        let lines = source.text.lines().count();
        if lines > LONG {
            eprintln!("warning: {} has {lines} lines; split it before it reaches {TOO_LONG}", source.path.display());
        }
        if lines > TOO_LONG {
            too_long.push(format!("{}: {lines} lines", source.path.display()));
        }
    }
    assert!(too_long.is_empty(), "split these files, one job each:\n{}", too_long.join("\n"));
}

fn is_module(name: &str) -> bool {
    name == "main" || ALLOWED.iter().any(|(module, _)| *module == name)
}

fn is_allowed(user: &str, used: &str) -> bool {
    if user == "main" {
        return true;
    }
    let allowed = ALLOWED.iter().find(|(module, _)| *module == user).map_or(&[][..], |(_, allowed)| allowed);
    allowed.contains(&used) || (allowed.contains(&"*") && !["app", "cli", "main"].contains(&used))
}

/// One source file.
struct Source {
    /// Relative to the repository.
    path: PathBuf,
    /// Its module path, such as `["store", "log"]`; empty for `lib.rs`.
    module: Vec<String>,
    text: String,
}

impl Source {
    /// Files that hold tests only.
    fn is_test(&self) -> bool {
        let starts = |folder| self.path.starts_with(folder);
        let named = |part: &std::ffi::OsStr| part == "tests" || part == "tests.rs" || part == "testing";
        starts("tests") || starts("simulators/tests") || starts("benches") || self.path.iter().any(named)
    }
}

fn sources(folders: &[&str]) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for folder in folders {
        collect(root, &root.join(folder), &root.join(folder), &mut found);
    }
    assert!(!found.is_empty(), "no source in {folders:?}");
    found
}

fn collect(root: &Path, base: &Path, folder: &Path, found: &mut Vec<Source>) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(root, base, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let inner = path.strip_prefix(base).expect("below the base").with_extension("");
            let mut module: Vec<String> = inner.iter().map(|part| part.to_string_lossy().into_owned()).collect();
            if module.last().is_some_and(|last| last == "lib" || last == "mod") {
                module.pop();
            }
            let text = std::fs::read_to_string(&path).expect("source is readable text");
            found.push(Source { path: path.strip_prefix(root).expect("below the root").to_owned(), module, text });
        }
    }
}

/// An identifier, `::`, or one character of punctuation.
struct Token {
    text: String,
    line: usize,
    /// Inside an item that only tests see.
    in_test: bool,
    /// Names of the inline modules around it.
    inline: Vec<String>,
}

/// Modules in files of their own that this file declares for tests only: `#[cfg(test)] mod name;`.
fn test_modules(source: &Source) -> Vec<Vec<String>> {
    let tokens = tokens(&source.text);
    let declares = |at: usize| {
        let text: Vec<&str> = tokens[at..].iter().take(10).map(|token| token.text.as_str()).collect();
        match text[..] {
            ["#", "[", "cfg", "(", "test", ")", "]", "mod", name, ";"] => Some(name.to_owned()),
            _ => None,
        }
    };
    (0..tokens.len()).filter_map(declares).map(|name| [source.module.clone(), vec![name]].concat()).collect()
}

/// The top-level modules that a file reaches, with the lines where it does.
fn edges(source: &Source) -> Vec<(usize, String)> {
    let tokens = tokens(&source.text);
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    let mut edges = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        let starts = index == 0 || text(index - 1) != "::";
        if !starts || text(index + 1) != "::" {
            continue;
        }
        let home = source.module.len() + token.inline.len();
        let (mut next, mut depth) = match token.text.as_str() {
            "crate" => (index + 2, 0),
            "super" => (index + 2, home.saturating_sub(1)),
            _ => continue,
        };
        while text(next) == "super" && text(next + 1) == "::" {
            (next, depth) = (next + 2, depth.saturating_sub(1));
        }
        if depth == 0 {
            edges.extend(heads(&tokens, next).into_iter().map(|head| (token.line, head)));
        }
    }
    edges
}

/// The first names of the path or of the `{…}` list that begins at `start`.
fn heads(tokens: &[Token], start: usize) -> Vec<String> {
    let text = |index: usize| tokens.get(index).map_or("", |token| token.text.as_str());
    if text(start) != "{" {
        return vec![text(start).to_owned()];
    }
    let (mut heads, mut depth, mut index) = (Vec::new(), 1, start + 1);
    let mut at_head = true;
    while depth > 0 && index < tokens.len() {
        match text(index) {
            "{" => depth += 1,
            "}" => depth -= 1,
            "," if depth == 1 => at_head = true,
            name if depth == 1 && at_head => {
                heads.push(name.to_owned());
                at_head = false;
            }
            _ => {}
        }
        index += 1;
    }
    heads
}

/// Splits source into tokens; comments, strings and character literals vanish.
fn tokens(text: &str) -> Vec<Token> {
    let code = blank_literals(text);
    let mut tokens: Vec<Token> = Vec::new();
    let mut rest = code.char_indices().peekable();
    let mut line = 1;
    while let Some((start, c)) = rest.next() {
        let mut end = start + c.len_utf8();
        if c == '\n' {
            line += 1;
        }
        if c.is_whitespace() {
            continue;
        }
        if c.is_alphanumeric() || c == '_' {
            while let Some((at, next)) = rest.next_if(|(_, next)| next.is_alphanumeric() || *next == '_') {
                end = at + next.len_utf8();
            }
        } else if c == ':' && rest.next_if(|(_, next)| *next == ':').is_some() {
            end += 1;
        }
        tokens.push(Token { text: code[start..end].to_owned(), line, in_test: false, inline: Vec::new() });
    }
    mark_modules(&mut tokens);
    tokens
}

/// Notes for each token the inline modules around it, and whether only tests see it.
fn mark_modules(tokens: &mut [Token]) {
    let mut depth = 0_usize;
    let mut inline: Vec<(usize, String)> = Vec::new();
    // Depth outside the item that `#[cfg(test)]` applies to; it ends at its closing brace or semicolon.
    let (mut test_from, mut test_pending): (Option<usize>, bool) = (None, false);
    for index in 0..tokens.len() {
        let text = |offset: usize| tokens.get(index + offset).map_or("", |token| token.text.as_str());
        let attribute: Vec<&str> = (0..7).map(text).collect();
        if attribute == ["#", "[", "cfg", "(", "test", ")", "]"] || attribute[..4] == ["#", "[", "test", "]"] {
            test_pending = true;
        }
        if text(0) == "mod" && text(2) == "{" {
            inline.push((depth, text(1).to_owned()));
        }
        let (opens, closes, ends) = (text(0) == "{", text(0) == "}", text(0) == ";");
        if opens {
            if test_pending && test_from.is_none() {
                test_from = Some(depth);
            }
            test_pending = false;
            depth += 1;
        }
        if ends && test_from.is_none() {
            test_pending = false;
        }
        tokens[index].in_test = test_from.is_some();
        tokens[index].inline = inline.iter().map(|(_, name)| name.clone()).collect();
        if closes {
            depth = depth.saturating_sub(1);
            inline.retain(|(outside, _)| *outside < depth);
            if test_from == Some(depth) {
                test_from = None;
            }
        }
    }
}

/// The source with spaces for everything inside comments, strings and character literals; lines stay where they are.
fn blank_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    while i < chars.len() {
        let end = literal_end(&chars, i);
        if end == i {
            out.push(chars[i]);
            i += 1;
            continue;
        }
        out.extend(chars[i..end].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
        i = end;
    }
    out
}

/// End of the comment or literal that begins at `i`, or `i` when none does.
fn literal_end(chars: &[char], i: usize) -> usize {
    let at = |offset: usize| chars.get(i + offset).copied().unwrap_or(' ');
    let after_name = i > 0 && (chars[i - 1].is_alphanumeric() || chars[i - 1] == '_');
    match at(0) {
        '/' if at(1) == '/' => (i..chars.len()).find(|j| chars[*j] == '\n').unwrap_or(chars.len()),
        '/' if at(1) == '*' => block_comment_end(chars, i),
        '"' => string_end(chars, i + 1),
        'r' if !after_name && (at(1) == '"' || at(1) == '#') => raw_string_end(chars, i + 1).unwrap_or(i),
        'b' if !after_name && at(1) == 'r' => raw_string_end(chars, i + 2).unwrap_or(i),
        // A lifetime has no closing quote.
        '\'' if at(1) == '\\' => (i + 3..chars.len()).find(|j| chars[*j] == '\'').map_or(chars.len(), |j| j + 1),
        '\'' if at(2) == '\'' => i + 3,
        _ => i,
    }
}

fn string_end(chars: &[char], mut i: usize) -> usize {
    while i < chars.len() && chars[i] != '"' {
        i += if chars[i] == '\\' { 2 } else { 1 };
    }
    (i + 1).min(chars.len())
}

fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars[start..].iter().take_while(|c| **c == '#').count();
    let open = start + hashes;
    (chars.get(open) == Some(&'"')).then_some(())?;
    let closes =
        |j: usize| chars[j] == '"' && chars[j + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes;
    Some((open + 1..chars.len()).find(|j| closes(*j)).map_or(chars.len(), |j| j + 1 + hashes))
}

fn block_comment_end(chars: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => (depth, i) = (depth + 1, i + 2),
            ('*', Some('/')) => (depth, i) = (depth - 1, i + 2),
            _ => i += 1,
        }
        if depth == 0 {
            return i;
        }
    }
    chars.len()
}

/// The checks themselves see what they should, and nothing else.
#[test]
fn paths_are_found_in_every_disguise() {
    let found = |module: &[&str], text: &str| -> BTreeMap<String, usize> {
        let module = module.iter().map(ToString::to_string).collect();
        let source = Source { path: PathBuf::new(), module, text: text.to_owned() };
        edges(&source).into_iter().map(|(line, head)| (head, line)).collect()
    };
    let all = |pairs: &[(&str, usize)]| pairs.iter().map(|(name, line)| (name.to_string(), *line)).collect();
    let text = "use crate::model::Value;\nfn f(x: crate::store::Seq) {}\nuse crate::{app, broker::{a, b}};";
    assert_eq!(found(&["x"], text), all(&[("model", 1), ("store", 2), ("app", 3), ("broker", 3)]));
    assert_eq!(found(&["x"], "use super::store::Seq;"), all(&[("store", 1)]));
    assert_eq!(found(&["x", "y"], "use super::store::Seq;"), all(&[]));
    assert_eq!(found(&["x", "y"], "use super::super::app;"), all(&[("app", 1)]));
    assert_eq!(found(&["x"], "mod tests { use super::super::app; }\nuse super::cli;"), all(&[("app", 1), ("cli", 2)]));
    assert_eq!(found(&["x"], "mod tests { use super::inner; }"), all(&[]));
    let hidden = "// crate::app\n/* crate::app /* */ crate::app */ let s = \"crate::app\"; let r = r#\"crate::app\"#;";
    assert_eq!(found(&["x"], hidden), all(&[]));
    assert_eq!(found(&["x"], "let c = '\"'; crate::app::f(); let l: &'static str = \"\";"), all(&[("app", 1)]));
}

#[test]
fn code_of_tests_is_told_apart() {
    let text = "fn a() { x.unwrap() }\n#[cfg(test)]\nmod tests { fn b() { x.unwrap() } }\nfn c() {}";
    let tokens = tokens(text);
    let marks: Vec<bool> = tokens.iter().filter(|t| t.text == "unwrap" || t.text == "c").map(|t| t.in_test).collect();
    assert_eq!(marks, [false, true, false]);
    let text = "mod a;\n#[cfg(test)]\nmod b;".to_owned();
    let source = Source { path: PathBuf::new(), module: vec!["x".into()], text };
    assert_eq!(test_modules(&source), [["x", "b"]]);
}
