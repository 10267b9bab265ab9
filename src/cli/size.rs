//! Sizes as people type them.

/// A number of bytes: `512`, `64K`, `10G`, `1.5T`; powers of 1024, upper or lower case.
///
/// # Errors
/// A text for the user.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size: a number and perhaps one of K M G T P E");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default();
    let power = match unit.to_ascii_uppercase().trim_end_matches("IB") {
        "" | "B" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        "P" => 50,
        "E" => 60,
        _ => return Err(wrong()),
    };
    let scale = 1_u128 << power;
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    let number = |s: &str| {
        let plain = !s.is_empty() && s.len() <= 19 && s.bytes().all(|b| b.is_ascii_digit());
        plain.then(|| s.parse::<u128>().ok()).flatten()
    };
    let (Some(whole), Some(part)) = (number(whole), number(fraction)) else {
        return Err(wrong());
    };
    let denominator = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(19));
    let bytes = whole
        .saturating_mul(scale)
        .saturating_add(part.saturating_mul(scale) / denominator);
    match i64::try_from(bytes) {
        Ok(bytes) => Ok(bytes.unsigned_abs()),
        Err(_) => Err(format!("{text} is larger than any disk can be")),
    }
}

/// A power of two of bytes.
///
/// # Errors
/// As [`parse`].
pub fn parse_power(text: &str) -> Result<u64, String> {
    match parse(text)? {
        size if size.is_power_of_two() => Ok(size),
        _ => Err(format!("{text} is no power of two")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [
            ("0", 0),
            ("512", 512),
            ("64k", 65536),
            ("10G", 10 << 30),
            ("1.5K", 1536),
            ("2MiB", 2 << 20),
            ("7E", 7 << 60),
        ] {
            assert_eq!(parse(text), Ok(want), "{text}");
        }
        for text in [
            "",
            "G",
            "-1",
            "1X",
            "1.G",
            ".5G",
            "1e3",
            "8E",
            "9999999999999999999G",
            "1 G",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse_power("96K").is_err() && parse_power("2M").is_ok());
    }
}
