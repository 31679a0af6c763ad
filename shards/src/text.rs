//! Sizes and dates as people write and read them, and errors of the system as they are told, for binaries.

use std::io::{Error, ErrorKind};
use std::path::Path;

/// What the system says, without its number, and what can be done about it where that is plain.
pub fn cause(error: &Error) -> String {
    let text = error.to_string();
    let said = text.split(" (os error ").next().unwrap_or_default();
    match error.kind() {
        ErrorKind::PermissionDenied => format!("{said}: run this as root, or as the user it belongs to"),
        ErrorKind::StorageFull => format!("{said}: make room there, or name a place on another file system"),
        ErrorKind::ReadOnlyFilesystem => format!("{said}: name a place on another one, or remount it"),
        ErrorKind::AlreadyExists => format!("{said}: something else of this name is in the way"),
        ErrorKind::NotADirectory => format!("{said}: a part of this path is a file"),
        ErrorKind::IsADirectory => format!("{said}: name a file"),
        ErrorKind::AddrInUse => {
            format!("{said}: name a free port, or stop who has it ('ss -ltnp' shows that)")
        }
        ErrorKind::InvalidData if said.contains("UTF-8") => "this is not a text file".into(),
        _ => said.into(),
    }
}

/// An error of the system, with the file or directory it is about.
pub fn at<E: Into<Error>>(path: &(impl AsRef<Path> + ?Sized)) -> impl Fn(E) -> String + Copy {
    let path = path.as_ref();
    move |error| format!("{}: {}", path.display(), cause(&error.into()))
}

/// A size as people type it: `512M`, `1G`, `4k`, `1.5MiB`, `20 GB`; powers of 1024. A bare number counts in `unit`s.
pub fn parse_size(text: &str, unit: u64) -> Result<u64, String> {
    let unclear = || format!("'{text}' is not a size such as 512M or 10G");
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (value, word) = trimmed.split_at(digits);
    let word = word.trim().to_ascii_lowercase();
    let letter = word.strip_suffix("ib").or(word.strip_suffix('b')).unwrap_or(&word);
    let factor = match letter {
        "" if word.is_empty() => unit,
        "" if word == "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1u64 << 40,
        _ if digits == 0 => return Err(unclear()),
        _ => {
            return Err(format!("'{text}': the unit '{word}' is unknown; use K, M, G or T (powers of 1024)"));
        }
    };
    let bytes = match value.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) if value.contains('.') => {
            let value: f64 = value.parse().map_err(|_| unclear())?;
            Some((value * factor as f64) as u64) // Saturates: refused below.
        }
        Err(_) if digits > 0 => None,
        Err(_) => return Err(unclear()),
    };
    bytes.filter(|bytes| *bytes <= 1 << 60).ok_or(format!("'{text}' is too large"))
}

/// A moment in UTC by the calendar.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Civil {
    pub year: i64,
    pub month: u32,
    pub day: u32,
    pub hour: u32,
    pub minute: u32,
    pub second: u32,
}

impl Civil {
    pub fn from_unix_s(seconds: u64) -> Civil {
        let (days, rest) = (seconds / 86_400, (seconds % 86_400) as u32);
        // Howard Hinnant's algorithm: eras of 400 years, years that begin in March.
        let z = days as i64 + 719_468;
        let era = z.div_euclid(146_097);
        let day_of_era = z.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        Civil { year, month, day, hour: rest / 3600, minute: rest / 60 % 60, second: rest % 60 }
    }
}

/// The beginning of a day in UTC, `2026-11-28`, in seconds since 1970.
pub fn parse_day(text: &str) -> Result<u64, String> {
    let unclear = || format!("'{text}' is not a day such as 2026-11-28");
    let parts: Vec<u64> = text.split('-').map_while(|part| part.parse().ok()).collect();
    let [year @ 1970..=9999, month, day] = parts[..] else { return Err(unclear()) };
    // The day is between these; the calendar says which it is.
    let (first, days) = ((year - 1970) * 365, (year - 1970) / 4 + 1 + 366);
    let is_it = |seconds: &u64| {
        let at = Civil::from_unix_s(*seconds);
        (at.year as u64, u64::from(at.month), u64::from(at.day)) == (year, month, day)
    };
    (first..first + days).map(|day| day * 86_400).find(is_it).ok_or_else(unclear)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_or_explained() {
        assert_eq!(parse_size("64", 1 << 20), Ok(64 << 20));
        assert_eq!(parse_size("1K", 1 << 20), Ok(1024));
        assert_eq!(parse_size("100B", 1 << 20), Ok(100));
        assert_eq!(parse_size("2GB", 1), Ok(2 << 30));
        assert_eq!(parse_size("1.5MiB", 1), Ok(3 << 19));
        assert_eq!(parse_size(" 512 mb ", 1), Ok(512 << 20));
        assert_eq!(parse_size("1.5", 1 << 30), Ok(3 << 29));
        let bad =
            ["", "-1", "K", "99999999999999999T", "99999999999999999999", "1.5.2G", "x", ".", "9e9G", "ib"];
        for bad in bad {
            assert!(parse_size(bad, 1 << 20).is_err(), "{bad}");
        }
        assert!(parse_size("big", 1).unwrap_err().contains("512M"));
        assert!(parse_size("1X", 1).unwrap_err().contains("unknown"));
        assert!(parse_size("1.5e300", 1).is_err());
    }

    #[test]
    fn errors_of_the_system_name_the_file_and_the_next_step() {
        let of = |number| at("/srv/x")(Error::from_raw_os_error(number));
        assert_eq!(of(libc::ENOENT), "/srv/x: No such file or directory");
        for (number, advice) in [
            (libc::EACCES, "as root"),
            (libc::ENOSPC, "make room"),
            (libc::EEXIST, "in the way"),
            (libc::EROFS, "remount"),
        ] {
            let text = of(number);
            assert!(
                text.starts_with("/srv/x: ") && text.contains(advice) && !text.contains("os error"),
                "{text}"
            );
        }
        let binary = Error::new(ErrorKind::InvalidData, "stream did not contain valid UTF-8");
        assert_eq!(at("/srv/x")(binary), "/srv/x: this is not a text file");
    }

    #[test]
    fn dates_are_right() {
        let at = |s| {
            let c = Civil::from_unix_s(s);
            (c.year, c.month, c.day, c.hour, c.minute, c.second)
        };
        assert_eq!(at(0), (1970, 1, 1, 0, 0, 0));
        assert_eq!(at(951_782_400), (2000, 2, 29, 0, 0, 0));
        assert_eq!(at(1_349_184_606), (2012, 10, 2, 13, 30, 6));
        assert_eq!(at(1_795_558_380), (2026, 11, 24, 22, 13, 0));
        for seconds in [0, 951_782_400, 1_795_478_400, 4_102_444_800 - 86_400, 253_402_214_400] {
            let c = Civil::from_unix_s(seconds);
            let text = format!("{:04}-{:02}-{:02}", c.year, c.month, c.day);
            assert_eq!(parse_day(&text), Ok(seconds), "{text}");
        }
        for bad in
            ["", "2026", "2026-13-01", "2026-02-29", "1969-12-31", "2026-11-28-1", "x-y-z", "2026-11-0"]
        {
            assert!(parse_day(bad).is_err(), "{bad}");
        }
    }
}
