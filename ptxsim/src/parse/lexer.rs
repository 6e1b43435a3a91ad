//! PTX text to tokens. A word takes its modifiers along: `ld.global.L1::no_allocate.v4.f32` is one token.

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// An opcode, a directive (with its dot), a register or a name.
    Word(&'a str),
    Int(u64),
    F32(u32),
    F64(u64),
    Text(&'a str),
    Sign(char),
    End,
}

/// Tokens with the line that each begins on.
pub(super) fn tokens(text: &str) -> Result<Vec<(Token<'_>, u32)>> {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len() / 4);
    let (mut i, mut line) = (0, 1u32);
    while i < bytes.len() {
        let c = bytes[i];
        match c {
            b'\n' => {
                line += 1;
                i += 1;
            }
            b' ' | b'\t' | b'\r' => i += 1,
            // Some writers end a string with a NUL.
            0 => i += 1,
            b'/' if bytes.get(i + 1) == Some(&b'/') => {
                while i < bytes.len() && bytes[i] != b'\n' {
                    i += 1;
                }
            }
            b'/' if bytes.get(i + 1) == Some(&b'*') => {
                let begin = line;
                i += 2;
                loop {
                    match bytes.get(i) {
                        None => return Err(Error::syntax(begin, "a comment does not end")),
                        Some(b'*') if bytes.get(i + 1) == Some(&b'/') => break,
                        Some(b'\n') => line += 1,
                        Some(_) => {}
                    }
                    i += 1;
                }
                i += 2;
            }
            b'"' => {
                let begin = i + 1;
                i = begin;
                while i < bytes.len() && bytes[i] != b'"' && bytes[i] != b'\n' {
                    i += 1;
                }
                if bytes.get(i) != Some(&b'"') {
                    return Err(Error::syntax(line, "a string does not end"));
                }
                out.push((Token::Text(&text[begin..i]), line));
                i += 1;
            }
            b'0'..=b'9' => {
                let begin = i;
                while i < bytes.len() && (bytes[i].is_ascii_alphanumeric() || bytes[i] == b'.') {
                    // The exponent of a decimal float takes a sign.
                    let exponent = matches!(bytes[i], b'e' | b'E')
                        && text[begin..i].contains('.')
                        && matches!(bytes.get(i + 1), Some(b'-' | b'+'));
                    i += if exponent { 2 } else { 1 };
                }
                out.push((number(&text[begin..i], line)?, line));
            }
            b'.' | b'%' | b'$' | b'_' | b'a'..=b'z' | b'A'..=b'Z' => {
                let begin = i;
                i += 1;
                loop {
                    match bytes.get(i) {
                        // `.reg.b32` is two directives, `ld.global` one opcode.
                        Some(b'.') if c == b'.' => break,
                        Some(b'.' | b'%' | b'$' | b'_' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => i += 1,
                        Some(b':')
                            if bytes.get(i + 1) == Some(&b':')
                                && bytes.get(i + 2).is_some_and(u8::is_ascii_alphanumeric) =>
                        {
                            i += 2
                        }
                        _ => break,
                    }
                }
                out.push((Token::Word(&text[begin..i]), line));
            }
            b'{' | b'}' | b'[' | b']' | b'(' | b')' | b'<' | b'>' | b',' | b';' | b':' | b'|' | b'@'
            | b'!' | b'=' | b'+' | b'-' | b'~' | b'*' => {
                out.push((Token::Sign(c as char), line));
                i += 1;
            }
            _ => {
                let found = text[i..].chars().next().unwrap_or('?');
                return Err(Error::syntax(line, format!("unexpected character {found:?}")));
            }
        }
    }
    out.push((Token::End, line));
    Ok(out)
}

fn number(text: &str, line: u32) -> Result<Token<'_>> {
    let bad = || Error::syntax(line, format!("{text:?} is not a number"));
    let radix = |digits: &str, radix| u64::from_str_radix(digits, radix).map_err(|_| bad());
    let lower = text.as_bytes().get(1).map(u8::to_ascii_lowercase);
    if text.starts_with('0') && text.len() > 2 {
        match lower {
            Some(b'f') if text.len() == 10 => {
                return Ok(Token::F32(radix(&text[2..], 16)? as u32));
            }
            Some(b'd') if text.len() == 18 => return Ok(Token::F64(radix(&text[2..], 16)?)),
            _ => {}
        }
    }
    if text.contains('.') {
        return text.parse::<f64>().map(|v| Token::F64(v.to_bits())).map_err(|_| bad());
    }
    let digits = text.strip_suffix(['U', 'u']).unwrap_or(text);
    Ok(Token::Int(match lower {
        Some(b'x') if text.starts_with('0') => radix(&digits[2..], 16)?,
        Some(b'b') if text.starts_with('0') => radix(&digits[2..], 2)?,
        _ if digits.len() > 1 && digits.starts_with('0') => radix(&digits[1..], 8)?,
        _ => radix(digits, 10)?,
    }))
}
