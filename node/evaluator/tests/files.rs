//! Files: sources that go into the store, loading, reading, links, the search path, positions.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use tempfile::TempDir;
use tvix_node_evaluator::limits::MAX_LINKS;
use tvix_node_evaluator::{
    Action, DryRun, Event, ExpressionSource, Format, Options, Reading, SearchPathEntry, Target, evaluate,
};

/// A folder with a file, a program, a link and a folder.
fn tree() -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tree = folder.path().join("tree");
    fs::create_dir_all(tree.join("sub")).expect("a folder");
    let write = |name: &str, text: &str, mode| {
        fs::write(tree.join(name), text).expect("a file");
        fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).expect("permissions");
    };
    write("a", "hello\n", 0o644);
    write("run", "#!/bin/sh\n", 0o755);
    write("sub/deep.nix", "deep", 0o644);
    symlink("a", tree.join("link")).expect("a link");
    folder
}

fn eval_with(options: Options, expression: &str) -> Result<String, String> {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Strict),
    };
    let mut result = Err("no event came".to_owned());
    evaluate(
        &options,
        &[target],
        &DryRun::default(),
        &mut |event| match event {
            Event::Value { text, .. } => result = Ok(String::from_utf8_lossy(&text).into_owned()),
            Event::Failed { error, .. } => result = Err(error.text),
            Event::Finished { .. } => {}
            Event::Derivation(_) => panic!("a value was asked for"),
        },
    )
    .expect("the options are valid");
    result
}

fn eval(base: &Path, expression: &str) -> Result<String, String> {
    eval_with(
        Options {
            base: base.to_owned(),
            ..Options::default()
        },
        expression,
    )
}

#[test]
fn sources_have_the_store_paths_of_stock_nix() {
    let folder = tree();
    for (expression, expected) in [
        ("\"${./tree}\"", "cl5528l5gd8apgmcp34glqfm0a1jvszj-tree"),
        ("\"${./tree/run}\"", "fhsg3jqz69b5s1ng2y2947cgd10nvswa-run"),
        ("\"${./tree/link}\"", "gl8mrq7cxzhp13jvrrik9l99dsjx3h3v-link"),
        (
            "builtins.path { path = ./tree/a; name = \"a\"; }",
            "wsapfasykqjyaw5h4glxcsgprzxp7bjd-a",
        ),
        (
            "builtins.path { path = ./tree/a; name = \"a\"; recursive = false; }",
            "dsnln8dzp7a38dkfhk9p6pldgsb5jpr5-a",
        ),
        (
            "builtins.path { path = ./tree; name = \"filtered\"; \
             filter = p: t: baseNameOf p != \"run\" && t != \"symlink\"; }",
            "gw0a6fjildzq9n6wi7405wi3bzg5smn3-filtered",
        ),
        (
            "builtins.filterSource (p: t: t != \"directory\") ./tree",
            "zk96m4cklzabw4zrxsjrivjczkb34kij-tree",
        ),
        (
            "builtins.filterSource (p: t: true) ./tree/a",
            "wsapfasykqjyaw5h4glxcsgprzxp7bjd-a",
        ),
    ] {
        let expected = format!("\"/nix/store/{expected}\"");
        assert_eq!(eval(folder.path(), expression), Ok(expected), "{expression}");
    }
}

#[test]
fn a_demanded_hash_is_checked() {
    let folder = tree();
    let hash = "sha256-WJG5sBbl8uv4RQhIwK6zwxTd8DfmQuXwA4ZpxOUlmu0=";
    let text = |hash: &str| {
        format!("builtins.path {{ path = ./tree/a; name = \"a\"; recursive = false; sha256 = \"{hash}\"; }}")
    };
    let wrong = eval(folder.path(), &text(hash)).expect_err("the hash is another one");
    assert!(wrong.contains("hash mismatch"), "{wrong}");
    let right = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
    assert_eq!(
        eval(folder.path(), &text(right)).as_deref(),
        Ok("\"/nix/store/dsnln8dzp7a38dkfhk9p6pldgsb5jpr5-a\"")
    );
}

#[test]
fn the_filter_sees_the_paths_of_the_source() {
    let folder = tree();
    let seen = eval(
        folder.path(),
        "let all = builtins.filterSource (p: t: builtins.trace \"${toString p} ${t}\" true) ./tree; in builtins.seq all 1",
    );
    assert_eq!(seen.as_deref(), Ok("1"));
    let refused = eval(folder.path(), "builtins.filterSource (p: t: 1) ./tree").expect_err("not a boolean");
    assert!(
        refused.contains("expected a Boolean but found an integer: 1"),
        "{refused}"
    );
}

#[test]
fn files_are_read_and_folders_listed() {
    let folder = tree();
    for (expression, expected) in [
        ("builtins.readFile ./tree/a", "\"hello\\n\""),
        ("builtins.readFile ./tree/link", "\"hello\\n\""),
        (
            "builtins.readDir ./tree",
            "{ a = \"regular\"; link = \"symlink\"; run = \"regular\"; sub = \"directory\"; }",
        ),
        (
            "map builtins.readFileType [ ./tree ./tree/a ./tree/link ]",
            "[ \"directory\" \"regular\" \"symlink\" ]",
        ),
        (
            "map builtins.pathExists [ ./tree ./tree/none ./tree/none/x ]",
            "[ true false false ]",
        ),
        (
            "map builtins.pathExists [ \"${toString ./tree}/\" \"${toString ./tree/a}/\" ]",
            "[ true false ]",
        ),
        (
            "builtins.hashFile \"sha256\" ./tree/a",
            "\"5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03\"",
        ),
        // A source that was added is read under its store path.
        ("builtins.readFile \"${./tree}/sub/deep.nix\"", "\"deep\""),
        ("builtins.readFile (builtins.toFile \"x\" \"text\")", "\"text\""),
        ("import (builtins.toFile \"x.nix\" \"1 + 1\")", "2"),
    ] {
        assert_eq!(
            eval(folder.path(), expression).as_deref(),
            Ok(expected),
            "{expression}"
        );
    }
    let error = eval(folder.path(), "builtins.readFile ./tree/none").expect_err("it is not there");
    assert!(error.contains("tree/none' does not exist"), "{error}");
    let error = eval(folder.path(), "builtins.readDir ./tree/a").expect_err("it is a file");
    assert!(error.contains("is not a directory"), "{error}");
}

#[test]
fn texts_need_not_be_utf_8_but_hold_no_zero() {
    let folder = tree();
    fs::write(folder.path().join("latin"), b"caf\xe9").expect("a file");
    fs::write(folder.path().join("zero"), b"a\0b").expect("a file");
    for (expression, expected) in [
        ("builtins.stringLength (builtins.readFile ./latin)", "4"),
        ("builtins.substring 0 3 (builtins.readFile ./latin)", "\"caf\""),
        (
            "builtins.readFile ./latin == \"caf\" + builtins.substring 3 1 (builtins.readFile ./latin)",
            "true",
        ),
    ] {
        assert_eq!(
            eval(folder.path(), expression).as_deref(),
            Ok(expected),
            "{expression}"
        );
    }
    let error = eval(folder.path(), "builtins.readFile ./zero").expect_err("it has a zero byte");
    assert!(error.contains("cannot be represented as a Nix string"), "{error}");
    let error = eval(folder.path(), "builtins.toJSON (builtins.readFile ./latin)").expect_err("not UTF-8");
    assert!(error.contains("invalid UTF-8"), "{error}");
}

#[test]
fn files_are_loaded_once_and_relative_to_themselves() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().expect("it has a folder")).expect("a folder");
        fs::write(path, text).expect("a file");
    };
    write("lib/default.nix", "{ x = import ./x.nix; here = ./.; }");
    write("lib/x.nix", "builtins.trace \"loaded\" 1");
    write("scoped.nix", "a + b");
    write("cycle.nix", "import ./cycle.nix");
    symlink("lib", folder.path().join("linked")).expect("a link");
    let here = folder.path().to_string_lossy().into_owned();
    for (expression, expected) in [
        ("(import ./lib).x + (import ./lib/default.nix).x", "2".to_owned()),
        ("(import ./lib).here", format!("{here}/lib")),
        // The link is followed, so that relative paths mean the folder it points to.
        ("(import ./linked).here", format!("{here}/lib")),
        (
            "builtins.scopedImport { a = 1; b = 2; } ./scoped.nix",
            "3".to_owned(),
        ),
    ] {
        assert_eq!(eval(folder.path(), expression), Ok(expected), "{expression}");
    }
    let error = eval(folder.path(), "import ./cycle.nix").expect_err("it imports itself");
    assert!(error.contains("infinite recursion encountered"), "{error}");
    let error = eval(folder.path(), "import ./scoped.nix").expect_err("nothing binds its variables");
    assert!(
        error.contains("undefined variable 'a'") && error.contains("scoped.nix:1:1"),
        "{error}"
    );
}

#[test]
fn links_in_circles_are_an_error() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    symlink("b", folder.path().join("a")).expect("a link");
    symlink("a", folder.path().join("b")).expect("a link");
    for expression in ["import ./a", "builtins.readFile ./a", "builtins.readDir ./a/x"] {
        let error = eval(folder.path(), expression).expect_err("it never ends");
        assert!(error.contains("too many symbolic links"), "{expression}: {error}");
    }
}

#[test]
fn a_path_leads_over_so_many_links_and_no_more() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("0"), "\"there\"").expect("a file");
    for number in 1..=MAX_LINKS + 1 {
        symlink((number - 1).to_string(), folder.path().join(number.to_string())).expect("a link");
    }
    let import = |number: usize| eval(folder.path(), &format!("import (./. + \"/{number}\")"));
    let read = |number: usize| eval(folder.path(), &format!("builtins.readFile (./. + \"/{number}\")"));
    assert_eq!(import(MAX_LINKS - 1), Ok("\"there\"".to_owned()));
    assert_eq!(read(MAX_LINKS), Ok("\"\\\"there\\\"\"".to_owned()));
    for result in [import(MAX_LINKS + 1), read(MAX_LINKS + 1)] {
        let error = result.expect_err("too many");
        assert!(error.contains("too many symbolic links"), "{error}");
    }
}

#[test]
fn the_search_path_is_looked_through_in_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for name in ["one/lib", "two/lib", "two/only"] {
        fs::create_dir_all(folder.path().join(name)).expect("a folder");
        let value = name.split('/').next().expect("it has parts");
        fs::write(
            folder.path().join(name).join("default.nix"),
            format!("\"{value}\""),
        )
        .expect("a file");
    }
    let here = folder.path().to_string_lossy().into_owned();
    let options = || Options {
        search_path: vec![
            SearchPathEntry::parse(&format!("{here}/one")),
            SearchPathEntry::parse(&format!("named={here}/two")),
            SearchPathEntry::parse(&format!("{here}/two")),
            SearchPathEntry::parse(&format!("{here}/missing")),
        ],
        ..Options::default()
    };
    for (expression, expected) in [
        ("import <lib>", "\"one\""),
        ("import <named/lib>", "\"two\""),
        ("import <only>", "\"two\""),
        ("(builtins.tryEval <nothing>).success", "false"),
        ("builtins.length __nixPath", "4"),
        (
            "let __nixPath = [ { prefix = \"x\"; path = \"/\"; } ]; in <x>",
            "/",
        ),
        (
            "let __findFile = path: name: name; in <anything/at-all>",
            "\"anything/at-all\"",
        ),
    ] {
        assert_eq!(
            eval_with(options(), expression).as_deref(),
            Ok(expected),
            "{expression}"
        );
    }
}

#[test]
fn positions_say_file_line_and_column() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(
        folder.path().join("p.nix"),
        "{\n  here = __curPos;\n  attrs = {\n    a = 1;\n  };\n}\n",
    )
    .expect("a file");
    let file = folder.path().join("p.nix").to_string_lossy().into_owned();
    assert_eq!(
        eval(folder.path(), "(import ./p.nix).here"),
        Ok(format!("{{ column = 10; file = \"{file}\"; line = 2; }}"))
    );
    assert_eq!(
        eval(
            folder.path(),
            "builtins.unsafeGetAttrPos \"a\" (import ./p.nix).attrs"
        ),
        Ok(format!("{{ column = 5; file = \"{file}\"; line = 4; }}"))
    );
    assert_eq!(
        eval(folder.path(), "builtins.unsafeGetAttrPos \"b\" { }").as_deref(),
        Ok("null")
    );
}

#[test]
fn restricted_evaluations_read_the_search_path_alone() {
    let folder = tree();
    let here = folder.path().join("tree").to_string_lossy().into_owned();
    let options = |reading| Options {
        base: folder.path().to_owned(),
        reading,
        search_path: vec![SearchPathEntry::parse(&format!("tree={here}"))],
        ..Options::default()
    };
    fs::write(folder.path().join("outside"), "x").expect("a file");
    assert_eq!(
        eval_with(options(Reading::Restricted), "builtins.readFile <tree/a>").as_deref(),
        Ok("\"hello\\n\"")
    );
    let error = eval_with(options(Reading::Restricted), "builtins.readFile ./outside").expect_err("outside");
    assert!(
        error.contains("is forbidden in restricted evaluation mode"),
        "{error}"
    );
    assert_eq!(
        eval_with(options(Reading::Restricted), "builtins.pathExists ./outside").as_deref(),
        Ok("false")
    );
    let error = eval_with(options(Reading::Pure), "import ./outside").expect_err("outside");
    assert!(error.contains("is forbidden in pure evaluation mode"), "{error}");
    assert_eq!(
        eval_with(options(Reading::Pure), "builtins ? currentTime").as_deref(),
        Ok("false")
    );
    assert_eq!(
        eval_with(options(Reading::Pure), "builtins.getEnv \"PATH\"").as_deref(),
        Ok("\"\"")
    );
}
