//! Reads a JSON object (RFC 8259) just deep enough: its keys, and where their values are. Everything is
//! checked, since values are passed on as they came; nothing is copied. Every message passes here.

/// What is wrong, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    pub what: &'static str,
    /// Byte of the text.
    pub at: usize,
}

/// How deep a text may be nested, the outermost object included.
pub const DEPTH: usize = 128;

/// One key with its value.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Between its quotes, escapes as they are.
    pub key: &'a [u8],
    /// True for a key with escapes.
    pub is_escaped: bool,
    /// Where its value is.
    pub value: (usize, usize),
}

/// Reads an object, and hands on its members.
#[inline]
pub fn object(text: &str, mut member: impl FnMut(Member<'_>)) -> Result<(), Fault> {
    let mut scan = Scan { text: text.as_bytes(), at: 0 };
    scan.blanks();
    if scan.peek() != b'{' {
        return scan.fault("a message is a JSON object");
    }
    scan.at += 1;
    scan.blanks();
    if scan.peek() == b'}' {
        scan.at += 1;
    } else {
        loop {
            let start = scan.at + 1;
            let is_escaped = scan.string()?;
            let key = scan.text.get(start..scan.at - 1).unwrap_or_default();
            scan.colon()?;
            let start = scan.at;
            scan.value()?;
            member(Member { key, is_escaped, value: (start, scan.at) });
            scan.blanks();
            match scan.peek() {
                b',' => scan.at += 1,
                b'}' => {
                    scan.at += 1;
                    break;
                }
                _ => return scan.fault("expected `,` or `}`"),
            }
            scan.blanks();
        }
    }
    scan.blanks();
    if scan.at < text.len() { scan.fault("something follows the object") } else { Ok(()) }
}

struct Scan<'a> {
    text: &'a [u8],
    at: usize,
}

/// Bytes that end the plain part of a text: quote, backslash, control characters.
static SPECIAL: [bool; 256] = {
    let mut special = [false; 256];
    let mut byte = 0;
    while byte < 0x20 {
        special[byte] = true;
        byte += 1;
    }
    special[b'"' as usize] = true;
    special[b'\\' as usize] = true;
    special
};

type Done = Result<(), Fault>;

impl Scan<'_> {
    fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        Err(Fault { what, at: self.at })
    }

    /// The next byte; 0 at the end, where no JSON has one.
    #[inline]
    fn peek(&self) -> u8 {
        self.text.get(self.at).copied().unwrap_or(0)
    }

    #[inline]
    fn blanks(&mut self) {
        while matches!(self.peek(), b' ' | b'\n' | b'\r' | b'\t') {
            self.at += 1;
        }
    }

    #[inline]
    fn colon(&mut self) -> Done {
        self.blanks();
        if self.peek() != b':' {
            return self.fault("expected `:`");
        }
        self.at += 1;
        self.blanks();
        Ok(())
    }

    /// One value, to its end.
    fn value(&mut self) -> Done {
        match self.peek() {
            b'{' | b'[' => self.nested(),
            _ => self.scalar(),
        }
    }

    #[inline]
    fn scalar(&mut self) -> Done {
        match self.peek() {
            b'"' => self.string().map(drop),
            b'-' | b'0'..=b'9' => self.number(),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            _ => self.fault("expected a value"),
        }
    }

    /// An array or object with all that is in it, without a call for each level.
    fn nested(&mut self) -> Done {
        // One bit for each level below the outermost object: set for an object.
        let (mut objects, mut depth) = ([0u64; DEPTH / 64], 0usize);
        loop {
            // At the beginning of a value.
            match self.peek() {
                open @ (b'{' | b'[') => {
                    if depth + 1 >= DEPTH {
                        return self.fault("nested too deep");
                    }
                    let bit = 1 << (depth % 64);
                    if open == b'{' {
                        objects[depth / 64] |= bit
                    } else {
                        objects[depth / 64] &= !bit
                    }
                    depth += 1;
                    self.at += 1;
                    self.blanks();
                    if self.peek() == open + 2 {
                        self.at += 1;
                        depth -= 1;
                    } else {
                        if open == b'{' {
                            self.string()?;
                            self.colon()?;
                        }
                        continue;
                    }
                }
                _ => self.scalar()?,
            }
            // Behind a value.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let is_object = objects[(depth - 1) / 64] >> ((depth - 1) % 64) & 1 == 1;
                self.blanks();
                match (self.peek(), is_object) {
                    (b',', _) => {
                        self.at += 1;
                        self.blanks();
                        if is_object {
                            self.string()?;
                            self.colon()?;
                        }
                        break;
                    }
                    (b'}', true) | (b']', false) => {
                        self.at += 1;
                        depth -= 1;
                    }
                    _ => return self.fault("expected `,` or the end of an array or object"),
                }
            }
        }
    }

    /// Answers whether it has escapes.
    #[inline]
    fn string(&mut self) -> Result<bool, Fault> {
        if self.peek() != b'"' {
            return self.fault("expected a text");
        }
        self.at += 1;
        let mut has_escapes = false;
        loop {
            let rest = self.text.get(self.at..).unwrap_or_default();
            let Some(plain) = rest.iter().position(|byte| SPECIAL[usize::from(*byte)]) else {
                self.at = self.text.len();
                return self.fault("a text does not end");
            };
            self.at += plain;
            match rest[plain] {
                b'"' => {
                    self.at += 1;
                    return Ok(has_escapes);
                }
                b'\\' => self.escape()?,
                _ => return self.fault("a control character in a text"),
            }
            has_escapes = true;
        }
    }

    fn escape(&mut self) -> Done {
        self.at += 1;
        match self.peek() {
            b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => self.at += 1,
            b'u' => match self.text.get(self.at + 1..self.at + 5) {
                Some(digits) if digits.iter().all(u8::is_ascii_hexdigit) => self.at += 5,
                _ => return self.fault("`\\u` has four hexadecimal digits"),
            },
            _ => return self.fault("no such escape"),
        }
        Ok(())
    }

    fn number(&mut self) -> Done {
        if self.peek() == b'-' {
            self.at += 1;
        }
        match self.peek() {
            b'0' => self.at += 1,
            b'1'..=b'9' => self.digits()?,
            _ => return self.fault("expected a digit"),
        }
        if self.peek() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.peek(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Done {
        if !self.peek().is_ascii_digit() {
            return self.fault("expected a digit");
        }
        while self.peek().is_ascii_digit() {
            self.at += 1;
        }
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Done {
        if !self.text[self.at..].starts_with(word) {
            return self.fault("expected a value");
        }
        self.at += word.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn members(text: &str) -> Result<Vec<(String, &str)>, Fault> {
        let mut found = Vec::new();
        object(text, |member| {
            found.push((
                String::from_utf8(member.key.to_vec()).unwrap(),
                &text[member.value.0..member.value.1],
            ));
        })?;
        Ok(found)
    }

    /// What serde_json says: is it an object, and with which members?
    fn judge(text: &str) -> Option<usize> {
        serde_json::from_str::<Value>(text).ok()?.as_object().map(serde_json::Map::len)
    }

    fn json() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_string()),
            Just("true".to_string()),
            Just("false".to_string()),
            any::<i64>().prop_map(|number| number.to_string()),
            any::<f64>()
                .prop_filter("finite", |number| number.is_finite())
                .prop_map(|number| format!("{number:e}")),
            "\\PC{0,12}".prop_map(|text| Value::from(text).to_string()),
            Just(r#""a\u00e9\n\"\\\/""#.to_string()),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5)
                    .prop_map(|list| format!("[{}]", list.join(" , "))),
                proptest::collection::vec(("[a-z]{1,4}", inner), 0..5).prop_map(|members| {
                    let unique: std::collections::BTreeMap<_, _> = members.into_iter().collect();
                    let members: Vec<_> =
                        unique.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect();
                    format!("{{\n{}\t}}", members.join(",\r\n "))
                }),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_serde_json_on_json(text in json()) {
            prop_assert_eq!(members(&text).ok().map(|found| found.len()), judge(&text));
        }

        #[test]
        fn it_agrees_with_serde_json_on_broken_json(
            text in json(),
            at in any::<prop::sample::Index>(),
            change in prop_oneof![Just(None), "[{}\\[\\]\",:0-9eE.+\\-\\\\ntfu \n\u{1}]".prop_map(Some)],
        ) {
            let mut chars: Vec<char> = text.chars().collect();
            let at = at.index(chars.len().max(1));
            match change {
                Some(change) => chars.splice(at..at, change.chars()).for_each(drop),
                None => chars.truncate(at),
            }
            let text: String = chars.into_iter().collect();
            // Numbers that no f64 can hold, and halves of surrogate pairs, are passed on: they are JSON.
            let is_apart = |text: &str| text.contains(['e', 'E']) || text.contains("\\u");
            if members(&text).is_ok() != judge(&text).is_some() {
                prop_assert!(is_apart(&text) && members(&text).is_ok(), "{}", text);
            }
        }
    }

    #[test]
    fn keys_and_values_are_where_they_are() {
        let text = r#" {"task":"T","data" : {"a":[1,{"b":null}]} ,"id":1e5} "#;
        let expected = vec![("task", r#""T""#), ("data", r#"{"a":[1,{"b":null}]}"#), ("id", "1e5")];
        let expected = expected.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
        assert_eq!(members(text), Ok(expected));
        assert_eq!(members("{}"), Ok(vec![]));
    }

    #[test]
    fn what_is_no_object_is_refused_with_the_place() {
        let fault = |text: &str| members(text).unwrap_err();
        for text in [
            "",
            " ",
            "[]",
            "1",
            "nul",
            "\"x\"",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\":01}",
            "{\"a\":1.}",
            "{\"a\":+1}",
            "{\"a\":'x'}",
            "{\"a\":\"\\x\"}",
            "{\"a\":\"\\u12g4\"}",
            "{\"a\":\"\n\"}",
            "{\"a\":[1,]}",
            "{\"a\":[1}",
            "{\"a\":{\"b\"}}",
            "{}x",
            "{} {}",
            "{\"a\":NaN}",
            "{\"a\":tru}",
        ] {
            fault(text);
        }
        assert_eq!(fault("{\"a\":1 2}"), Fault { what: "expected `,` or `}`", at: 7 });
    }

    #[test]
    fn depth_is_bounded_and_brackets_in_texts_do_not_count() {
        let nested =
            |depth: usize| members(&format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth))).is_ok();
        assert!(nested(DEPTH - 1) && !nested(DEPTH) && !nested(100_000));
        let objects = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        assert!(members(&objects(DEPTH)).is_ok() && members(&objects(DEPTH + 1)).is_err());
        assert!(members(&format!("{{\"a\":\"{}\"}}", "[".repeat(500))).is_ok());
    }
}
