//! Which crates and licences may come in.
//!
//! The advisory database is not at hand wherever our tests run, so we keep a list of our own: crates that are
//! unmaintained, unsound or superseded. It holds for all that an ordinary build or test of the workspace compiles, through
//! however many steps; what only the benchmark's feature `peers` pulls in (the engines that we compare with) is not ours to
//! choose and does not count.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::{Outcome, cargo};

/// A crate that must not come in.
struct Ban {
    name: &'static str,
    /// Versions from this major version on are fine.
    fine_from_major: Option<u64>,
    instead: &'static str,
}

const fn ban(name: &'static str, instead: &'static str) -> Ban {
    Ban { name, fine_from_major: None, instead }
}

const BANNED: &[Ban] = &[
    ban("ansi_term", "anstyle"),
    ban("async-std", "tokio"),
    ban("atty", "std::io::IsTerminal"),
    ban("backoff", "a loop of our own over a Clock"),
    ban("bincode", "an own fixed layout, postcard or prost"),
    ban("derivative", "derives of the standard library, written out where they do not fit"),
    Ban { name: "dirs", fine_from_major: Some(2), instead: "dirs 2 or newer" },
    ban("failure", "thiserror"),
    ban("fs2", "rustix or fs4"),
    ban("fxhash", "foldhash or rustc-hash"),
    ban("instant", "a Clock"),
    ban("memmap", "memmap2"),
    ban("paste", "macro_rules without pasted names"),
    ban("proc-macro-error", "syn::Error"),
    ban("proc-macro-error2", "syn::Error"),
    ban("rustls-pemfile", "PemObject of rustls-pki-types"),
    ban("serde_cbor", "an own fixed layout, postcard or prost"),
    ban("serde_yaml", "toml"),
    ban("sled", "our own engine"),
    ban("structopt", "clap with derive"),
    ban("term_size", "terminal_size"),
    ban("tui", "ratatui"),
    ban("users", "rustix"),
    ban("yaml-rust", "toml"),
];

/// Licences under which a dependency may come; it needs one of them where it offers a choice.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// A package that the build uses.
#[derive(Debug)]
struct Package {
    name: String,
    version: String,
    licence: Option<String>,
}

/// Checks the dependencies and prints how many there were.
pub(crate) fn run() -> Outcome {
    let packages = packages()?;
    let problems = problems(&packages);
    if problems.is_empty() {
        eprintln!("{} packages, none banned, every licence agreed to", packages.len());
        Ok(())
    } else {
        Err(problems.join("\n"))
    }
}

/// What is wrong with these packages, a sentence each.
fn problems(packages: &[Package]) -> Vec<String> {
    let mut problems = Vec::new();
    for package in packages {
        let Package { name, version, licence } = package;
        let major: u64 = version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
        for ban in BANNED.iter().filter(|ban| ban.name == name) {
            if ban.fine_from_major.is_none_or(|fine| major < fine) {
                let instead = ban.instead;
                problems.push(format!(
                    "{name} {version} is banned, use {instead}; `cargo tree --workspace -i {name}` says who pulls it in"
                ));
            }
        }
        match licence {
            None => problems.push(format!("{name} {version} names no licence")),
            Some(licence) if !is_agreed(licence) => {
                problems.push(format!("{name} {version} has the licence {licence}, which is not on our list"));
            }
            Some(_) => {}
        }
    }
    problems
}

/// True if the SPDX expression can be satisfied with licences of our list.
fn is_agreed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ").replace(" WITH ", "\0");
    let tokens: Vec<String> = spaced.split(' ').filter(|token| !token.is_empty()).map(restore_with).collect();
    let mut rest = tokens.as_slice();
    let agreed = any_of(&mut rest);
    agreed && rest.is_empty()
}

/// `X WITH Y` is one token while an expression is split at spaces.
fn restore_with(token: &str) -> String {
    token.replace('\0', " WITH ")
}

/// `all OR all OR …`
fn any_of(tokens: &mut &[String]) -> bool {
    let mut agreed = all_of(tokens);
    while let Some(rest) = after("OR", tokens) {
        *tokens = rest;
        agreed |= all_of(tokens);
    }
    agreed
}

/// `one AND one AND …`
fn all_of(tokens: &mut &[String]) -> bool {
    let mut agreed = one(tokens);
    while let Some(rest) = after("AND", tokens) {
        *tokens = rest;
        agreed &= one(tokens);
    }
    agreed
}

/// A licence, or an expression in parentheses.
fn one(tokens: &mut &[String]) -> bool {
    let Some((first, rest)) = tokens.split_first() else { return false };
    *tokens = rest;
    if first != "(" {
        return LICENCES.contains(&first.as_str());
    }
    let agreed = any_of(tokens);
    match after(")", tokens) {
        Some(rest) => {
            *tokens = rest;
            agreed
        }
        None => false,
    }
}

/// What follows if the next token is `word`.
fn after<'a>(word: &str, tokens: &&'a [String]) -> Option<&'a [String]> {
    let (first, rest) = tokens.split_first()?;
    (first == word).then_some(rest)
}

/// The packages that an ordinary build or test of the workspace uses on this target, our own included.
fn packages() -> Result<Vec<Package>, String> {
    let mut command = cargo();
    command.args(["metadata", "--format-version", "1", "--locked", "--filter-platform", env!("XTASK_HOST")]);
    let output = command.output().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let metadata: Value = serde_json::from_slice(&output.stdout).map_err(|error| format!("cargo metadata: {error}"))?;
    resolved(&metadata).ok_or_else(|| "cargo metadata has another shape than format version 1".to_string())
}

/// The packages of the resolved graph that can be reached from the workspace's members. (`packages` in the metadata also
/// lists what is only locked.)
fn resolved(metadata: &Value) -> Option<Vec<Package>> {
    let nodes = metadata["resolve"]["nodes"].as_array()?;
    let node_by_id: BTreeMap<&str, &Value> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let package_by_id: BTreeMap<&str, &Value> = metadata["packages"]
        .as_array()?
        .iter()
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let mut found: BTreeMap<&str, Package> = BTreeMap::new();
    let mut todo: Vec<&str> = metadata["workspace_members"].as_array()?.iter().filter_map(Value::as_str).collect();
    while let Some(id) = todo.pop() {
        if found.contains_key(id) {
            continue;
        }
        let package = package_by_id.get(id)?;
        found.insert(
            id,
            Package {
                name: package["name"].as_str()?.to_string(),
                version: package["version"].as_str()?.to_string(),
                licence: package["license"].as_str().map(str::to_string),
            },
        );
        todo.extend(node_by_id.get(id)?["dependencies"].as_array()?.iter().filter_map(Value::as_str));
    }
    Some(found.into_values().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str, licence: Option<&str>) -> Package {
        Package { name: name.to_string(), version: version.to_string(), licence: licence.map(str::to_string) }
    }

    /// The workspace as it is: nothing banned, every licence agreed to.
    #[test]
    fn the_workspace_has_only_agreed_dependencies() {
        let packages = packages().unwrap();
        assert!(packages.iter().any(|package| package.name == "clap"), "the list must hold what we know to be there");
        let problems = problems(&packages);
        assert!(problems.is_empty(), "{}", problems.join("\n"));
    }

    /// A banned crate is named with what to use instead; a ban of old versions lets the newer pass.
    #[test]
    fn a_banned_crate_is_named() {
        let packages = [
            package("memmap", "0.7.0", Some("MIT")),
            package("dirs", "1.0.5", Some("MIT")),
            package("dirs", "6.0.0", Some("MIT")),
        ];
        let problems = problems(&packages);
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("memmap 0.7.0 is banned, use memmap2"), "{problems:?}");
        assert!(problems[1].starts_with("dirs 1.0.5 is banned"), "{problems:?}");
    }

    /// AND binds tighter than OR; a missing or unknown licence is a problem.
    #[test]
    fn licences_are_read_as_expressions() {
        for fine in ["MIT", "MIT/Apache-2.0", "GPL-3.0 OR MIT", "(MIT OR Apache-2.0) AND Unicode-3.0"] {
            assert!(is_agreed(fine), "{fine}");
        }
        assert!(is_agreed("Apache-2.0 WITH LLVM-exception OR GPL-2.0-only"));
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "(MIT OR Apache-2.0) AND GPL-3.0", "", "(MIT", "MIT Apache-2.0"] {
            assert!(!is_agreed(bad), "{bad}");
        }
        assert_eq!(problems(&[package("x", "1.0.0", None)]).len(), 1);
    }
}
