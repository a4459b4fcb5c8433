//! Exactness where evaluators of Nix have gone wrong: expressions, and what stock Nix 2.8 prints for them.
//!
//! The answers can be made again with `nix-instantiate --eval --strict -E EXPRESSION`.

use tvix_node_evaluator::{Action, DryRun, Event, ExpressionSource, Format, Options, Target, evaluate};

/// Evaluates an expression strictly; its printed form, or the rendered error.
fn eval(expression: &str) -> Result<String, String> {
    let target = Target {
        source: ExpressionSource::Text(expression.to_owned()),
        attribute: String::new(),
        action: Action::Print(Format::Strict),
    };
    let mut result = Err("no event came".to_owned());
    evaluate(
        &Options::default(),
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

fn printed(table: &[(&str, &str)]) {
    for (expression, expected) in table {
        assert_eq!(eval(expression).as_deref(), Ok(*expected), "{expression}");
    }
}

fn refused(table: &[(&str, &str)]) {
    for (expression, reason) in table {
        match eval(expression) {
            Ok(value) => panic!("{expression} evaluates to {value}"),
            Err(error) => assert!(error.contains(reason), "{expression}: {error}"),
        }
    }
}

#[test]
fn an_attribute_that_cannot_be_coerced_fails_and_is_never_dropped() {
    refused(&[
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; f = x: x; }).drvPath"#,
            "cannot coerce a function to a string",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; f = { }; }).drvPath"#,
            "cannot coerce a set to a string",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; f = [ "x" [ { a = 1; } ] ]; }).drvPath"#,
            "cannot coerce a set to a string",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; f = { outPath = x: x; }; }).drvPath"#,
            "cannot coerce a function to a string",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; f = throw "no"; }).drvPath"#,
            "no",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; args = [ (x: x) ]; }).drvPath"#,
            "cannot coerce a function to a string",
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __structuredAttrs = true; f = [ (x: x) ]; }).drvPath"#,
            "cannot convert a function to JSON",
        ),
        ("toString [ 1 { } ]", "cannot coerce a set to a string"),
        (
            "builtins.toJSON { a = x: x; }",
            "cannot convert a function to JSON",
        ),
    ]);
}

#[test]
fn infinite_recursion_is_always_an_error() {
    refused(&[
        ("let a = a; in a", "infinite recursion encountered"),
        ("rec { a = b; b = a; }.a", "infinite recursion encountered"),
        ("let a = { b = a.b; }; in a.b", "infinite recursion encountered"),
        (
            "let l = [ (builtins.head l) ]; in builtins.head l",
            "infinite recursion encountered",
        ),
        ("let s = s // { }; in s", "infinite recursion encountered"),
        (r#"let s = "${s}"; in s"#, "infinite recursion encountered"),
        (
            "let s = { x = 1; } // s; in s.x",
            "infinite recursion encountered",
        ),
        ("let f = f 1; in f", "infinite recursion encountered"),
        (
            "let a = if a then 1 else 2; in a",
            "infinite recursion encountered",
        ),
        ("let a = a ++ [ ]; in a", "infinite recursion encountered"),
        ("let n = n + 1; in n", "infinite recursion encountered"),
        ("with (let s = s; in s); x", "infinite recursion encountered"),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = d; }; in d.drvPath"#,
            "infinite recursion encountered",
        ),
        (
            "let a = builtins.tryEval a; in a.value",
            "infinite recursion encountered",
        ),
        (
            "let a = builtins.map (x: x) a; in builtins.length a",
            "infinite recursion encountered",
        ),
        ("let { body = body; }", "infinite recursion encountered"),
        (
            "let a = builtins.toJSON a; in a",
            "infinite recursion encountered",
        ),
        (
            "let x = builtins.attrNames x; in x",
            "infinite recursion encountered",
        ),
        (
            "let x = builtins.foldl' (a: b: x) 0 [ 1 ]; in x",
            "infinite recursion encountered",
        ),
        (
            "rec { __overrides = a; a = __overrides; }",
            "infinite recursion encountered",
        ),
    ]);
}

#[test]
fn string_context_survives_every_string_builtin() {
    printed(&[
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext ("${d}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext ("${d.drvPath}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { allOutputs = true; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext ("x" + d)"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (toString [ d "b" ])"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.substring 3 4 "${d}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.substring 0 0 "${d}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.concatStringsSep "${d}" [ ])"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.concatStringsSep "${d}" [ "a" "b" ])"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.concatStringsSep "" [ "a" "${d}" ])"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.replaceStrings [ "a" ] [ "${d}" ] "a")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.replaceStrings [ "a" ] [ "${d}" ] "b")"#,
            "{ }",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.replaceStrings [ "a" ] [ "b" ] "${d}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.replaceStrings [ "${d}" ] [ "x" ] "a")"#,
            "{ }",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toJSON { a = d; })"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toJSON [ "${d}" ])"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toXML { a = "${d}"; })"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toXML d)"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { allOutputs = true; outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (baseNameOf "${d}/x")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (dirOf "${d}/x")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.unsafeDiscardOutputDependency d.drvPath)"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { path = true; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.unsafeDiscardStringContext "${d}")"#,
            "{ }",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toFile "x" (builtins.unsafeDiscardStringContext "${d}"))"#,
            r#"{ "/nix/store/x5b65nh8qjzljh69rpg66lfkqc9h853h-x" = { path = true; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.head (builtins.match "(.*)" "${d}"))"#,
            "{ }",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.head (builtins.split "-" "${d}"))"#,
            "{ }",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.appendContext "a" (builtins.getContext "${d}${d.drvPath}"))"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { allOutputs = true; outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getContext (builtins.toPath "${d}")"#,
            r#"{ "/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv" = { outputs = [ "out" ]; }; }"#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.hasContext (builtins.toFile "x" "")"#,
            "true",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.stringLength "${d}" > 10"#,
            "true",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.hashString "sha256" "${d}""#,
            r#""0324f246fb9880baa916c3f3604407c1c879838a4487196e00b5671696b4bac5""#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.parseDrvName "${builtins.unsafeDiscardStringContext d}" == { }"#,
            "false",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in "${d}" == builtins.unsafeDiscardStringContext "${d}""#,
            "true",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.attrNames { "${builtins.unsafeDiscardStringContext "${d.name}"}" = 1; }"#,
            r#"[ "a" ]"#,
        ),
    ]);
}

#[test]
fn string_context_is_refused_where_nix_refuses_it() {
    refused(&[
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in { ${"${d}"} = 1; }"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.hasAttr "${d}" { }"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getAttr "${d}" { }"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.listToAttrs [ { name = "${d}"; value = 1; } ]"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.match "${d}" "x""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.split "${d}" "x""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.parseDrvName "${d}""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.compareVersions "${d}" "1""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.getEnv "${d}""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.placeholder "${d}""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.fromJSON "\"${d}\"""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in derivation { name = "${d}"; system = "x"; builder = "/b"; }"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.hashString "${d}" "x""#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.removeAttrs { } [ "${d}" ]"#,
            "is not allowed to refer to a store path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in /. + "${d}""#,
            "a string that refers to a store path cannot be appended to a path",
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in builtins.toFile "x" "${d}""#,
            "may not reference derivations",
        ),
    ]);
}

#[test]
fn names_and_versions_are_split_and_compared_as_in_nix() {
    printed(&[
        (
            r#"builtins.parseDrvName "nix-0.12pre12876""#,
            r#"{ name = "nix"; version = "0.12pre12876"; }"#,
        ),
        (
            r#"builtins.parseDrvName "a-b-c""#,
            r#"{ name = "a-b-c"; version = ""; }"#,
        ),
        (
            r#"builtins.parseDrvName "a-""#,
            r#"{ name = "a-"; version = ""; }"#,
        ),
        (
            r#"builtins.parseDrvName "a-1-2""#,
            r#"{ name = "a"; version = "1-2"; }"#,
        ),
        (
            r#"builtins.parseDrvName "-1""#,
            r#"{ name = ""; version = "1"; }"#,
        ),
        (r#"builtins.parseDrvName """#, r#"{ name = ""; version = ""; }"#),
        (
            r#"builtins.parseDrvName "hello-a1""#,
            r#"{ name = "hello-a1"; version = ""; }"#,
        ),
        (
            r#"builtins.parseDrvName "hello-.1""#,
            r#"{ name = "hello"; version = ".1"; }"#,
        ),
        (
            r#"builtins.parseDrvName "a-1.2-b""#,
            r#"{ name = "a"; version = "1.2-b"; }"#,
        ),
        (
            r#"builtins.parseDrvName "x--1""#,
            r#"{ name = "x"; version = "-1"; }"#,
        ),
        (
            r#"builtins.parseDrvName "a-b1""#,
            r#"{ name = "a-b1"; version = ""; }"#,
        ),
        (
            r#"builtins.parseDrvName "firefox-3.0""#,
            r#"{ name = "firefox"; version = "3.0"; }"#,
        ),
        (r#"builtins.compareVersions "1.0" "2.3""#, "-1"),
        (r#"builtins.compareVersions "2.1" "2.01""#, "0"),
        (r#"builtins.compareVersions "2.3pre1" "2.3""#, "-1"),
        (r#"builtins.compareVersions "2.3.1" "2.3a""#, "1"),
        (r#"builtins.compareVersions "2.3a" "2.3.1""#, "-1"),
        (r#"builtins.compareVersions "2.3" "2.3.0""#, "-1"),
        (r#"builtins.compareVersions "" "a""#, "-1"),
        (r#"builtins.compareVersions "pre" """#, "-1"),
        (r#"builtins.compareVersions "1a" "1b""#, "-1"),
        (r#"builtins.compareVersions "1.a" "1.1""#, "-1"),
        (r#"builtins.compareVersions "00001" "1""#, "0"),
        (r#"builtins.compareVersions "1.0pre" "1.0a""#, "-1"),
        (r#"builtins.compareVersions "1..2" "1.2""#, "0"),
        (r#"builtins.compareVersions "1-2" "1.2""#, "0"),
        (
            r#"builtins.splitVersion "1.2.3pre4-5_6""#,
            r#"[ "1" "2" "3" "pre" "4" "5" "_" "6" ]"#,
        ),
        (r#"builtins.splitVersion "a..b""#, r#"[ "a" "b" ]"#),
        (r#"builtins.splitVersion """#, "[ ]"),
        (r#"builtins.splitVersion "a1b2""#, r#"[ "a" "1" "b" "2" ]"#),
        (r#"builtins.splitVersion "1_2""#, r#"[ "1" "_" "2" ]"#),
    ]);
}

#[test]
fn numbers_are_printed_as_in_nix() {
    printed(&[
        (
            "[ 1.0 0.1 1.0e10 1.0e6 123456.789 1.0e-5 100000.0 1000000.0 1234567.0 3.14159265358979 1.0e15 1.0e20 1.5e-10 (-0.5) 1.0e300 ]",
            "[ 1 0.1 1e+10 1e+06 123457 1e-05 100000 1e+06 1.23457e+06 3.14159 1e+15 1e+20 1.5e-10 -0.5 1e+300 ]",
        ),
        (
            "map toString [ 1.0 0.1 1.0e10 3.14159265358979 1.0e-7 123456789.123 (-0.5) 1.0e20 ]",
            r#"[ "1.000000" "0.100000" "10000000000.000000" "3.141593" "0.000000" "123456789.123000" "-0.500000" "100000000000000000000.000000" ]"#,
        ),
        (
            "builtins.toXML [ 1.0 0.1 1.0e20 ]",
            r#""<?xml version='1.0' encoding='utf-8'?>\n<expr>\n  <list>\n    <float value=\"1\" />\n    <float value=\"0.1\" />\n    <float value=\"1e+20\" />\n  </list>\n</expr>\n""#,
        ),
        ("[ (1 / 2) (-7 / 2) (7.0 / 2) ]", "[ 0 -3 3.5 ]"),
        (
            r#"builtins.fromJSON "[1, 1.5, -1, -0.0, 1.0e2, 1.25e-3]""#,
            "[ 1 1.5 -1 -0 100 0.00125 ]",
        ),
        (
            "[ (1 == 1.0) (1 < 1.5) (builtins.floor 1.5) (builtins.ceil (-1.5)) ]",
            "[ true true 1 -1 ]",
        ),
        ("builtins.toJSON 9223372036854775807", r#""9223372036854775807""#),
    ]);
}

#[test]
fn sets_that_are_called_or_coerced_are_what_nix_makes_of_them() {
    printed(&[
        ("({ __functor = self: x: x + self.n; n = 2; }) 3", "5"),
        ("map { __functor = self: x: [ x ]; } [ 1 2 ]", "[ [ 1 ] [ 2 ] ]"),
        (
            "builtins.functionArgs ({ a, b ? 1, ... }: 1)",
            "{ a = false; b = true; }",
        ),
        ("builtins.functionArgs (x: 1)", "{ }"),
        ("builtins.functionArgs map", "{ }"),
        ("toString { __toString = self: self.x; x = 1; }", r#""1""#),
        (
            r#"toString { __toString = self: { outPath = "x"; }; outPath = "y"; }"#,
            r#""x""#,
        ),
        (r#""${{ outPath = { outPath = "z"; }; }}""#, r#""z""#),
        (
            "rec { a = b; b = 1; __overrides = { b = 2; c = 3; }; }",
            "{ __overrides = { b = 2; c = 3; }; a = 2; b = 2; c = 3; }",
        ),
        ("let __overrides = { b = 2; }; b = 1; in b", "1"),
        ("rec { __overrides = { c = 3; }; a = c; c = 1; }.a", "3"),
        ("toString [ 1 [ ] 2 ]", r#""1 2""#),
        ("toString [ 1 2 [ ] ]", r#""1 2 ""#),
        ("toString [ [ ] 1 ]", r#""1""#),
        (r#"toString [ "a" [ [ ] ] "b" ]"#, r#""a  b""#),
        ("toString [ [ ] ]", r#""""#),
        (r#"toString [ "" "" ]"#, r#"" ""#),
    ]);
}

#[test]
fn derivations_of_every_kind_have_the_paths_of_nix() {
    printed(&[
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b";  }).drvPath"#,
            r#""/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; args = [ 1 null true [ "x" ] 1.5 "" ]; foo = [ 1 [ ] 2 ]; bar = null; baz = false; }).drvPath"#,
            r#""/nix/store/j4xk7abhjzi8f2wcqv9ww00cay3j85c8-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputs = [ "out" "dev" ]; }).drvPath"#,
            r#""/nix/store/54ix7p5dfqv8wiz8k3kh02mksakhr78n-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputs = [ "dev" "out" ]; }).drvPath"#,
            r#""/nix/store/5mdy925j9aqqmm4kl4l0hj1lfpkad9i0-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputHashAlgo = "sha256"; outputHash = "ABCDEF0000000000000000000000000000000000000000000000000000000000"; outputHashMode = "recursive"; }).drvPath"#,
            r#""/nix/store/9xfhz8m44hv1kf6rc2c6sy5klxyyq5ib-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputHashAlgo = "sha256"; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; }).drvPath"#,
            r#""/nix/store/hs3y0mx5yx00dlcfdllhq311wcnnxqbm-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputHash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; }).drvPath"#,
            r#""/nix/store/71vw0za1209rx2470a859z9hcai9vs4f-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputHashAlgo = "md5"; outputHash = "d41d8cd98f00b204e9800998ecf8427e"; }).drvPath"#,
            r#""/nix/store/ga98msrf95v3hn1wlss8jlacpxhm350i-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputHashAlgo = "sha1"; outputHashMode = "recursive"; outputHash = "DA39A3EE5E6B4B0D3255BFEF95601890AFD80709"; }).drvPath"#,
            r#""/nix/store/bvgspz3sxvvlr38gi6xnmix2i93aayhm-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __structuredAttrs = true; a = 1; b = [ 1.5 null { c = true; } ]; e = "é\u0001"; outputs = [ "out" "lib" ]; }).drvPath"#,
            r#""/nix/store/rp5xcxj7bxcrp8dvd8jncadn6piccsjd-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __ignoreNulls = true; a = null; b = 1; }).drvPath"#,
            r#""/nix/store/4r57minxv0ssg38166m4nvm69ii8g2h5-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __structuredAttrs = true; __ignoreNulls = true; a = null; }).drvPath"#,
            r#""/nix/store/xz27f4hcz053xp2hx22krkh54c4nxzjx-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __contentAddressed = false; __impure = false; }).drvPath"#,
            r#""/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; env = "x\ny\t\"\\\r"; }).drvPath"#,
            r#""/nix/store/1hphvbizrv88adjvb8mvw4qcdgyzwyd4-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; "weird name" = 1; "ünï" = 2; }).drvPath"#,
            r#""/nix/store/6bgihqg6mnw5gbsavidzbamc9p651f96-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; out = "mine"; }).drvPath"#,
            r#""/nix/store/zls09i4hh0vfzm882j1ry186i11233w6-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; outputs = [ "a" "b" ]; a = 1; }).drvPath"#,
            r#""/nix/store/grdshpa99nzmdx08b62yz5w3plzs87bv-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; __json = "{}"; }).drvPath"#,
            r#""/nix/store/2jljv0rd1sxvff29mvj5impk8gqaxpvz-a.drv""#,
        ),
        (
            r#"(derivation { name = "a"; system = "x"; builder = "/b"; x = 0.1; y = 1.0e20; z = [ 1.5 ]; }).drvPath"#,
            r#""/nix/store/nqwl27qhs57fvp105bvmsm0cwa3zpn5v-a.drv""#,
        ),
        (
            r#"let d = derivation { name = "a"; system = "x"; builder = "/b"; }; in (derivation { name = "b"; system = "x"; builder = "/b"; a = d; b = d.drvPath; c = builtins.unsafeDiscardOutputDependency d.drvPath; }).drvPath"#,
            r#""/nix/store/8n85ljr4ksnw2d68iw3avl7kiizr1wf2-b.drv""#,
        ),
        (
            r#"let f = u: derivation { name = "f"; system = "x"; builder = "/b"; outputHashAlgo = "sha256"; outputHash = "0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa"; inherit u; }; in map (u: (derivation { name = "c"; system = "x"; builder = "/b"; src = f u; }).outPath) [ "1" "2" ]"#,
            r#"[ "/nix/store/nfppyh4s10x621s3yw05zavxr9ppnyhn-c" "/nix/store/nfppyh4s10x621s3yw05zavxr9ppnyhn-c" ]"#,
        ),
        (
            r#"let f = u: derivation { name = "f"; system = "x"; builder = "/b"; outputHashAlgo = "sha256"; outputHash = "0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa"; inherit u; }; m = u: derivation { name = "m"; system = "x"; builder = "/b"; outputs = [ "out" "dev" ]; src = f u; }; in (derivation { name = "c"; system = "x"; builder = "/b"; p = (m "1").dev; q = (m "2").out; }).outPath"#,
            r#""/nix/store/ns3rkf39zrbgpmnwbryan9zgynjk3yn0-c""#,
        ),
        (
            r#"import <nix/fetchurl.nix> { url = "http://h/x"; sha256 = "0sg9f58l1jj88w6pdrfdpj5x9b1zrwszk84j81zvby36q9whhhqa"; } == 1"#,
            "false",
        ),
        (
            r#"(import <nix/fetchurl.nix> { url = "http://h/x"; hash = "sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="; executable = true; }).drvPath"#,
            r#""/nix/store/dn7rcr72gljj67lwbsdwcfw72966l55d-x.drv""#,
        ),
    ]);
}

#[test]
fn deep_recursion_ends_in_a_value() {
    printed(&[
        (
            "builtins.foldl' (x: y: x + y) 0 (builtins.genList (x: x) 1000000)",
            "499999500000",
        ),
        (
            "builtins.length (map (x: x + 1) (builtins.genList (x: x) 1000000))",
            "1000000",
        ),
        (
            "let f = n: if n == 0 then 0 else 1 + f (n - 1); in f 1000",
            "1000",
        ),
        (
            "let f = n: if n == 0 then 0 else 1 + f (n - 1); in f 9000",
            "9000",
        ),
        (
            r#"builtins.stringLength (builtins.foldl' (a: b: a + "x") "" (builtins.genList (x: x) 10000))"#,
            "10000",
        ),
    ]);
}

#[test]
fn endless_recursion_ends_in_a_message() {
    refused(&[
        ("let f = n: 1 + f (n + 1); in f 0", "stack overflow"),
        ("let f = x: f (x + 1); in f 1", "stack overflow"),
        ("let x = { a = x; }; in builtins.toJSON x", "stack overflow"),
        ("let x = { __functor = self: self; }; in x 1", "stack overflow"),
        (
            "let l = builtins.foldl' (a: x: [ a ]) [ ] (builtins.genList (x: x) 100000); in builtins.deepSeq l 1",
            "stack overflow",
        ),
    ]);
}

/// Nix 2.8 had six digits and no point; what goes into JSON must be the number that it was.
#[test]
fn floats_go_into_json_as_in_current_nix() {
    printed(&[
        (
            "builtins.toJSON [ 0.1 1.5 123456.789 1.0e-7 1.5e15 1.0e300 3.14159265358979 ]",
            r#""[0.1,1.5,123456.789,1e-07,1.5e+15,1e+300,3.14159265358979]""#,
        ),
        (
            "builtins.toJSON [ 1.0 100000.0 (-0.0) ]",
            r#""[1.0,100000.0,0.0]""#,
        ),
    ]);
}

/// A set is not at once equal to itself: what its elements throw is thrown, as in Nix.
#[test]
fn what_is_compared_with_itself_is_evaluated() {
    refused(&[
        (r#"let a = { x = throw "z"; }; in a == a"#, "z"),
        (r#"let a = [ (throw "z") ]; in a == a"#, "z"),
    ]);
    printed(&[
        ("let a = { f = x: x; }; in a == a", "true"),
        ("let a = [ (x: x) ]; in a == a", "true"),
        ("let f = x: x; in f == f", "false"),
    ]);
}

/// Current Nix reads them and writes them down again, so that spaces and order make no other derivation.
#[test]
fn structured_attributes_given_as_json_are_written_anew() {
    let path = |json: &str| {
        let expression = format!(
            r#"(derivation {{ name = "a"; system = "x"; builder = "b"; __json = {json}; }}).drvPath"#
        );
        eval(&expression)
    };
    let canonical = path(r#""{\"a\":2,\"b\":1}""#).unwrap();
    assert_eq!(path(r#""{ \"b\" : 1, \"a\":2 }""#).unwrap(), canonical);
    for wrong in [r#""nojson""#, r#""[ ]""#] {
        let error = path(wrong).unwrap_err();
        assert!(error.contains("cannot process __json attribute"), "{error}");
    }
}

#[test]
fn a_string_has_a_greatest_length() {
    let megabyte = "builtins.foldl' (a: b: a + a) \"a\" (builtins.genList (x: x) 20)";
    let five_thousand = "builtins.genList (x: \"\") 5000";
    let joined = format!("builtins.concatStringsSep ({megabyte}) ({five_thousand})");
    refused(&[(&joined, "a string cannot be longer than 4294967295 bytes")]);
}

#[test]
fn an_output_may_have_any_name_but_that_of_the_derivation() {
    printed(&[(
        r#"builtins.length (derivation { name = "a"; system = "x"; builder = "b"; outputs = [ "out" "drv" ]; }).all"#,
        "2",
    )]);
    refused(&[(
        r#"(derivation { name = "a"; system = "x"; builder = "b"; outputs = [ "drvPath" ]; }).drvPath"#,
        "invalid derivation output name 'drvPath'",
    )]);
}
