//! Dates of HTTP (RFC 9110 section 5.6.7): the usual form and the two that old servers send.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/// Returns seconds since 1970.
pub fn http_date(text: &str) -> Option<i64> {
    let mut words: Vec<&str> = text.split([' ', ',', ':', '-']).filter(|w| !w.is_empty()).skip(1).collect();
    if let Some(month) = words.first().filter(|w| MONTHS.contains(w)).copied() {
        // `Sun Nov  6 08:49:37 1994`
        let [_, day, hour, minute, second, year] = words.as_slice() else { return None };
        words = vec![day, month, year, hour, minute, second];
    }
    let (day, month, year) = (number(words.first()?, 31)?, words.get(1)?, number(words.get(2)?, 9999)?);
    let month = i8::try_from(MONTHS.iter().position(|m| m == month)?).ok()? + 1;
    let year = match (year, words.get(2)?.len()) {
        // Two digits mean the century that is nearest.
        (year @ ..70, 2) => year + 2000,
        (year, 2) => year + 1900,
        (year, _) => year,
    };
    let clock = [number(words.get(3)?, 23)?, number(words.get(4)?, 59)?, number(words.get(5)?, 60)?];
    let [hour, minute, second] = clock.map(|n| i8::try_from(n).unwrap_or_default());
    let date = Date::new(i16::try_from(year).ok()?, month, i8::try_from(day).ok()?).ok()?;
    // A leap second is the one before it.
    let at = date.at(hour, minute, second.min(59), 0);
    TimeZone::UTC.to_timestamp(at).ok().map(Timestamp::as_second)
}

/// Returns the usual form of a time in seconds since 1970; that of 1970 where HTTP has none.
pub fn format_http_date(seconds: i64) -> String {
    let at = Timestamp::from_second(seconds).unwrap_or_default().to_zoned(TimeZone::UTC);
    let name = |names: &[&'static str], at: i8| names.get(usize::try_from(at).unwrap_or(0)).copied().unwrap_or("");
    let weekday = name(&DAYS, at.weekday().to_monday_zero_offset());
    let month = name(&MONTHS, at.month() - 1);
    let (day, year, hour, minute, second) = (at.day(), at.year(), at.hour(), at.minute(), at.second());
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
