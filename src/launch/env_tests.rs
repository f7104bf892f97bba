//! CD-7: what an environment file means; B4: what one from a hostile replica does not get.

use super::*;
use crate::base::Kind;

fn read(text: &str) -> Result<Vars> {
    let mut vars = Vars::new();
    parse("env", text.as_bytes(), &[], &mut vars).map(|()| vars)
}

fn value(text: &str) -> String {
    read(&format!("B=base\nA={text}")).unwrap()["A"].value.clone()
}

#[test]
fn cd7_the_forms_of_a_line() {
    for (text, is) in [
        ("plain", "plain"),
        ("two words ", "two words"),
        ("x # said", "x"),
        ("x#y", "x#y"),
        ("", ""),
        ("# nothing", ""),
        ("'${B} $(x) `y` \\n'", "${B} $(x) `y` \\n"),
        ("\"a \\\"b\\\" \\$c\"", "a \"b\" $c"),
        ("\"${B}/x\" # said", "base/x"),
        ("${B}/${B}", "base/base"),
        ("\\$HOME", "$HOME"),
        ("é/日本", "é/日本"),
    ] {
        assert_eq!(value(text), is, "{text}");
    }
    let v = read("# c\n\n  export A=1\r\nexport\tB=2\nA=${A}${B}\nexported=3\n").unwrap();
    assert_eq!((v["A"].value.as_str(), v["A"].source.as_str()), ("12", "env:5"));
    assert_eq!((v.len(), v["exported"].value.as_str()), (3, "3"));
}

#[test]
fn cd7_what_is_quoted_is_read_back() {
    for text in ["/DB/vol 1", "a\"b\\c$d`e", "${B}", "# x", "'", ""] {
        assert_eq!(value(&quote(text)), text);
    }
}

#[test]
fn cd8_variables_in_definitions() {
    let v = read("A=1\nB=two").unwrap();
    assert_eq!(expand("x${A}y${B}$z", &v).unwrap(), "x1ytwo$z");
    assert_eq!(expand("$${A} ${A}", &v).unwrap(), "${A} 1");
    for (text, words) in
        [("${C}", "C is not set"), ("${", "begins the name"), ("${A", "begins the name"), ("${a b}", "begins")]
    {
        assert!(expand(text, &v).unwrap_err().contains(words), "{text}");
    }
}

#[test]
fn b4_hostile_environment_files_are_refused_with_their_line() {
    let long = "x".repeat(VALUE_BYTES_MAX + 1);
    let bomb = format!("A={}\nB=${{A}}${{A}}\n", "x".repeat(VALUE_BYTES_MAX));
    let many: String = (0..=KEYS_MAX).map(|i| format!("K{i}=1\n")).collect();
    let much: String =
        format!("A={}\n", "x".repeat(16000)) + &(0..40).map(|i| format!("K{i}=${{A}}\n")).collect::<String>();
    let cases: Vec<(Vec<u8>, usize, &str)> = vec![
        (b"A=\xff\n".to_vec(), 1, "not UTF-8"),
        (b"A=1\nB=\0\n".to_vec(), 2, "cannot be seen (U+0000)"),
        (b"A=\x1b[2J\n".to_vec(), 1, "cannot be seen (U+001B)"),
        ("A=\u{202e}gnp.exe\n".into(), 1, "cannot be seen (U+202E)"),
        ("\u{feff}A=1\n".into(), 1, "cannot be seen (U+FEFF)"),
        (b"A=1\rB=2\n".to_vec(), 1, "cannot be seen (U+000D)"),
        (b"A=$(rm -rf /)\n".to_vec(), 1, "nothing is run here"),
        (b"A=`id`\n".to_vec(), 1, "nothing is run here"),
        (b"A=\"$(id)\"\n".to_vec(), 1, "nothing is run here"),
        (b"A=$B\n".to_vec(), 1, "write ${NAME}"),
        (b"A=${B}\nB=1\n".to_vec(), 1, "B is not set above"),
        (b"A=${A}\n".to_vec(), 1, "A is not set above"),
        (b"A=${B:-x}\n".to_vec(), 1, "names no variable"),
        (b"A=${B\n".to_vec(), 1, "write ${NAME}"),
        (b"A=\"x\n\"\n".to_vec(), 1, "is not closed"),
        (b"A='x\n".to_vec(), 1, "is not closed"),
        (b"A='x'y\n".to_vec(), 1, "after the closing"),
        (b"A=x'y'\n".to_vec(), 1, "a quote within"),
        (b"A=\\x\n".to_vec(), 1, "\\ stands before"),
        (b"\nno assignment\n".to_vec(), 2, "write NAME=VALUE"),
        (b"A = 1\n".to_vec(), 1, "no name of a variable"),
        (b"A= 1\n".to_vec(), 1, "a space after the ="),
        (b"=1\n".to_vec(), 1, "no name of a variable"),
        (b"1A=1\n".to_vec(), 1, "no name of a variable"),
        (b"A-B=1\n".to_vec(), 1, "no name of a variable"),
        ("É=1\n".into(), 1, "no name of a variable"),
        (format!("{}=1\n", "N".repeat(129)).into(), 1, "no name of a variable"),
        (b"LD_PRELOAD=/AP/vol1/x.so\n".to_vec(), 1, "LD_PRELOAD is not taken from a volume"),
        (b"export LD_LIBRARY_PATH=/AP\n".to_vec(), 1, "LD_LIBRARY_PATH is not taken"),
        (b"BASH_ENV=/AP/x\n".to_vec(), 1, "BASH_ENV is not taken"),
        (b"BASH_FUNC_ls=() { id; }\n".to_vec(), 1, "BASH_FUNC_ls is not taken"),
        (b"IFS=x\n".to_vec(), 1, "IFS is not taken"),
        (b"PATH=/AP/bin\n".to_vec(), 1, "PATH is not taken"),
        (b"PYTHONSTARTUP=/AP/x\n".to_vec(), 1, "PYTHONSTARTUP is not taken"),
        (b"HOME=/AP\n".to_vec(), 1, "HOME is not taken"),
        (b"KAGAMI_CONFIG=/AP/site.toml\n".to_vec(), 1, "are kagami's own"),
        (format!("A={long}\n").into(), 1, "a value has at most"),
        (bomb.into(), 2, "a value has at most"),
        (many.into(), KEYS_MAX + 1, "more than 1000 variables"),
        (much.into(), 33, "bytes together"),
        (vec![b'\n'; FILE_BYTES_MAX as usize + 1], 1, "at most 65536 bytes"),
    ];
    assert!(cases.len() >= 30);
    for (text, line, words) in cases {
        let e = parse("env", &text, &[], &mut Vars::new()).unwrap_err();
        let shown = String::from_utf8_lossy(&text).chars().take(60).collect::<String>();
        assert_eq!(e.kind, Kind::Config, "{shown:?}");
        assert!(e.msg.starts_with(&format!("env:{line}: ")), "{shown:?}: {e}");
        assert!(e.msg.contains(words), "{shown:?}: {e}");
        assert!(!e.msg.chars().any(invisible) && e.msg.len() < 400, "{shown:?}: {e:?}");
    }
}

#[test]
fn cd9_a_variable_that_the_site_allows_is_taken() {
    let mut v = Vars::new();
    parse("env", b"PATH=/opt/bin", &["PATH".into()], &mut v).unwrap();
    assert_eq!(v["PATH"].value, "/opt/bin");
    // kagami's own names are nobody else's.
    assert!(parse("env", b"KAGAMI_X=1", &["KAGAMI_X".into()], &mut v).is_err());
}
