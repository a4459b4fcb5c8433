use super::*;

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern.as_bytes()).unwrap_or_else(|error| panic!("{error}"))
}

/// The groups of a match of the whole text, `-` for one that had no part; `None` if it does not match.
fn groups(pattern: &str, text: &str) -> Option<Vec<String>> {
    let groups = regex(pattern).match_whole(text.as_bytes()).unwrap()?;
    let show = |group: Option<Range<usize>>| group.map_or("-".to_owned(), |range| text[range].to_owned());
    Some(groups.into_iter().map(show).collect())
}

/// All matches as `text` or `text(groups)`, separated by commas.
fn matches(pattern: &str, text: &str) -> String {
    let show = |found: Match| {
        let groups: Vec<_> = found
            .groups
            .into_iter()
            .map(|group| group.map_or("-", |range| &text[range]))
            .collect();
        let whole = &text[found.range];
        if groups.is_empty() {
            whole.to_owned()
        } else {
            format!("{whole}({})", groups.join(" "))
        }
    };
    let found = regex(pattern).matches(text.as_bytes()).unwrap();
    found.into_iter().map(show).collect::<Vec<_>>().join(",")
}

#[test]
fn whole_matches() {
    for (pattern, text, expected) in [
        ("", "", Some(&[][..])),
        ("", "a", None),
        ("ab", "abc", None),
        ("abc", "abc", Some(&[])),
        ("a(b)(c)", "abc", Some(&["b", "c"])),
        (
            "[[:space:]]+([[:upper:]]+)[[:space:]]+",
            "  FOO   ",
            Some(&["FOO"]),
        ),
        ("(a)|b", "b", Some(&["-"])),
        ("(a|(b))*", "ba", Some(&["a", "b"])),
        ("(a*)*", "aa", Some(&[""])),
        ("(a|ab)(c|bcd)?", "abcd", Some(&["a", "bcd"])),
        ("(a?)(a?)", "a", Some(&["a", ""])),
        ("()", "", Some(&[""])),
        ("a||b", "", Some(&[])),
        (".*", "a\nb", Some(&[])),
        (".", "é", None),
        ("..", "é", Some(&[])),
        ("a{2}", "aa", Some(&[])),
        ("a{2,}", "aaaa", Some(&[])),
        ("a{1,2}", "aaa", None),
        ("(a){0}b", "b", Some(&["-"])),
        ("a**", "aaa", Some(&[])),
        ("a+?", "", Some(&[])),
        ("^a$", "a", Some(&[])),
        ("a^b", "ab", None),
        ("a}]", "a}]", Some(&[])),
        (
            "(([0-9]+)\\.([0-9]+))-(.*)",
            "1.2-x",
            Some(&["1.2", "1", "2", "x"]),
        ),
    ] {
        let expected = expected.map(|groups| groups.iter().map(|&group| group.to_owned()).collect());
        assert_eq!(groups(pattern, text), expected, "{pattern:?} on {text:?}");
    }
}

#[test]
fn bracket_expressions() {
    for (pattern, inside, outside) in [
        ("[abc]", "abc", "d]"),
        ("[^abc]", "d^\n", "abc"),
        ("[a-c]", "abc", "d-"),
        ("[]a]", "]a", "["),
        ("[^]a]", "b", "]a"),
        ("[a-]", "a-", "b"),
        ("[-a]", "a-", "b"),
        ("[%--]", "%&-", "."),
        ("[a\\]", "a\\", "b"),
        ("[[a]", "[a", "]"),
        ("[[:alpha:]_]", "aZ_", "1"),
        ("[^[:alpha:]_]", "1 ", "aZ_"),
        ("[[:DIGIT:]]", "19", "a"),
        ("[[:w:]]", "a1_", "-"),
        ("[[:punct:]]", "!~_", "a "),
        ("[[:space:]]", " \t\n\r\u{b}\u{c}", "a"),
        ("[[:blank:]]", " \t", "\n"),
        ("[[:print:]]", " a~", "\n\u{7f}"),
        ("[[:graph:]]", "a~", " "),
        ("[[:cntrl:]]", "\n\u{7f}", " "),
        ("[[.hyphen.]a]", "-a", "h"),
        ("[[.a.]-c]", "abc", "d"),
        ("[[=a=]]", "aA", "b"),
    ] {
        for byte in inside.chars() {
            assert_eq!(
                groups(pattern, &byte.to_string()),
                Some(vec![]),
                "{pattern} and {byte:?}"
            );
        }
        for byte in outside.chars() {
            assert_eq!(groups(pattern, &byte.to_string()), None, "{pattern} and {byte:?}");
        }
    }
}

#[test]
fn malformed_expressions() {
    for pattern in [
        "(",
        ")",
        "a)",
        "(a",
        "*",
        "*a",
        "a|*",
        "(*)",
        "^*",
        "+",
        "?",
        "{1}",
        "a{",
        "a{}",
        "a{,2}",
        "a{2,1}",
        "a{x}",
        "a{1",
        "a{1,",
        "\\",
        "a\\",
        "\\d",
        "\\}",
        "\\]",
        "\\-",
        "\\1",
        "[",
        "[]",
        "[^]",
        "[a",
        "[z-a]",
        "[a-c-e]",
        "[[:alpha:]-z]",
        "[a-[:alpha:]]",
        "[a-[.c.]]",
        "[[:foo:]]",
        "[[:alpha:]",
        "[[:a",
        "[[.foo.]]",
        "[[.-.]]",
        "[a-é]",
        "(?:a)",
        "[a--b]x[",
        "a\0",
    ] {
        let error = Regex::new(pattern.as_bytes()).expect_err(pattern);
        assert_eq!(
            error.to_string(),
            format!("invalid regular expression '{pattern}'")
        );
    }
}

#[test]
fn expressions_that_are_too_large() {
    let many = |text: &str| text.repeat(1000);
    for pattern in [
        "a{100001}".to_owned(),
        "a{99999999999}".to_owned(),
        "(a{1000}){1000}".to_owned(),
        format!("{}a{}", many("("), many(")")),
        format!("a{}", many("*")),
    ] {
        let error = Regex::new(pattern.as_bytes()).expect_err(&pattern);
        assert_eq!(
            error.to_string(),
            format!("memory limit exceeded by regular expression '{pattern}'")
        );
    }
    assert!(Regex::new("a+(b*)".repeat(1000).as_bytes()).is_ok());
}

#[test]
fn all_matches_in_a_text() {
    for (pattern, text, expected) in [
        ("(a)b", "abc", "ab(a)"),
        ("([ac])", "abc", "a(a),c(c)"),
        ("(a)|(c)", "abc", "a(a -),c(- c)"),
        ("([[:upper:]]+)", " FOO ", "FOO(FOO)"),
        ("x", "abc", ""),
        ("", "abc", ",,,"),
        ("", "", ""),
        ("a*", "baac", ",aa,,"),
        ("^a", "aaa", "a"),
        ("a$", "aaa", "a"),
        ("$", "ab", ""),
        // The longest side of an alternative, but the first way of a repetition.
        ("(a|ab)(c|bcd)?", "abcd", "abcd(a bcd)"),
        ("a|ab|abc", "abcab", "abc,ab"),
        ("a?(ab)?", "ab", "a(-),(-),(-)"),
        ("(b|bc)(cd)?", "bcd", "bcd(b cd)"),
        ("b*|c", "bbc", "bb,c,"),
    ] {
        assert_eq!(matches(pattern, text), expected, "{pattern:?} in {text:?}");
    }
}

#[test]
fn bad_expressions_end_in_reasonable_time() {
    let text = "a".repeat(500);
    for pattern in [
        "(a|aa)*b",
        "(a|a)*b",
        "(a+)+b",
        "a*a*a*a*a*b",
        "(.*)(.*)(.*)x",
        "(a|b|ab)*c",
        "((a+)(a+))+b",
        "((a*)*)*b",
    ] {
        assert_eq!(groups(pattern, &text), None, "{pattern}");
        assert_eq!(matches(pattern, &text[..100]), "", "{pattern}");
    }
}

#[test]
fn long_texts_need_no_recursion() {
    let text = "ab".repeat(200_000);
    assert_eq!(groups("(ab|c)*", &text), Some(vec!["ab".to_owned()]));
    assert_eq!(
        groups("(.*)b", &text).map(|groups| groups[0].len()),
        Some(text.len() - 1)
    );
    assert_eq!(regex("b").matches(text.as_bytes()).unwrap().len(), 200_000);
}

#[test]
fn the_cache_is_bounded() {
    let mut cache = RegexCache::new();
    let first = cache.get(b"a").unwrap();
    assert!(Rc::ptr_eq(&first, &cache.get(b"a").unwrap()));
    for number in 0..2 * REGEX_CACHE {
        cache.get(format!("b{number}").as_bytes()).unwrap();
        assert!(cache.compiled.len() <= REGEX_CACHE);
    }
    assert!(cache.get(b"(").is_err());
}
