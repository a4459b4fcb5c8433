use super::*;

#[test]
fn every_placeholder_is_replaced() {
    let rewrites = [
        ("/aa".to_owned(), "/long/path".to_owned()),
        ("/bb".to_owned(), String::new()),
    ];
    assert_eq!(
        rewritten(b"/aa:/aa/bb \xff/a", &rewrites),
        b"/long/path:/long/path \xff/a"
    );
    assert_eq!(rewritten(b"", &rewrites), b"");
}

#[test]
fn cores_are_those_asked_for_or_all() {
    assert_eq!(cores(7), 7);
    assert!(cores(0) >= 1);
}

#[test]
fn thirty_two_bit_platforms_are_known() {
    assert!(is_thirty_two_bit("armv7l-linux"));
    assert!(!is_thirty_two_bit("x86_64-linux"));
    assert_eq!(is_thirty_two_bit("i686-linux"), cfg!(target_arch = "x86_64"));
}
