//! Dates of HTTP (RFC 9110 section 5.6.7): the usual form and the two that old servers send.

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];

/// Returns seconds since 1970.
pub fn http_date(text: &str) -> Option<i64> {
    let mut words: Vec<&str> = text.split([' ', ',', ':', '-']).filter(|w| !w.is_empty()).skip(1).collect();
    if let Some(month) = words.first().filter(|w| MONTHS.contains(w)).copied() {
        // `Sun Nov  6 08:49:37 1994`
        let [_, day, hour, minute, second, year] = words.as_slice() else { return None };
        words = vec![day, month, year, hour, minute, second];
    }
    let (day, month, year) = (number(words.first()?, 31)?, words.get(1)?, number(words.get(2)?, 9999)?);
    let month = i64::try_from(MONTHS.iter().position(|m| m == month)?).ok()? + 1;
    let year = match (year, words.get(2)?.len()) {
        // Two digits mean the century that is nearest.
        (year @ ..70, 2) => year + 2000,
        (year, 2) => year + 1900,
        (year, _) => year,
    };
    let clock = [number(words.get(3)?, 23)?, number(words.get(4)?, 59)?, number(words.get(5)?, 60)?];
    // Days from the civil calendar, counting years from March.
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let of_era = y - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + clock[0] * 3600 + clock[1] * 60 + clock[2])
}

/// Returns the usual form of a time in seconds since 1970.
pub fn format_http_date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // The civil calendar of a day, counting years from March.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z - era * 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let name = |names: &[&'static str], at: i64| names.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or("");
    let weekday = name(&DAYS, days.rem_euclid(7));
    let month = name(&MONTHS, month - 1);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

fn number(text: &str, most: i64) -> Option<i64> {
    text.parse().ok().filter(|n| (0..=most).contains(n))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_forms_of_dates() {
        for text in ["Sun, 06 Nov 1994 08:49:37 GMT", "Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            assert_eq!(http_date(text), Some(784_111_777), "{text}");
        }
        assert_eq!(http_date("Tue, 29 Feb 2000 12:00:00 GMT"), Some(951_825_600));
        for text in ["yesterday", "", "Thu, 01 Jan 99999999999999 00:00:10 GMT", "Thu, 01 Jan 1970 99:00:10 GMT"] {
            assert_eq!(http_date(text), None, "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(format_http_date(784_111_777), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(format_http_date(0), "Thu, 01 Jan 1970 00:00:00 GMT");
        for seconds in [951_825_600, 4_102_444_799, 1] {
            assert_eq!(http_date(&format_http_date(seconds)), Some(seconds));
        }
    }
}
