//! Dates for templates that ask for today's (`strftime_now`), from a time that is passed in.

const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAY_S: i64 = 86_400;
/// The first second of the year 0 and the last of 9999: times beyond are taken for these.
const TIMES_S: (i64, i64) = (-62_167_219_200, 253_402_300_799);

/// Formats a UTC time, `unix_s` seconds after 1970, as C's strftime does in the C locale.
/// A conversion that is not known stays as it is.
pub(crate) fn strftime(format: &str, unix_s: i64) -> String {
    let unix_s = unix_s.clamp(TIMES_S.0, TIMES_S.1);
    let (days, second) = (unix_s.div_euclid(DAY_S), unix_s.rem_euclid(DAY_S));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let day_name = DAYS[(days + 4).rem_euclid(7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let twelve = (hour + 11) % 12 + 1;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => out += &year.to_string(),
            Some('y') => out += &format!("{:02}", year.rem_euclid(100)),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('e') => out += &format!("{day:2}"),
            Some('B') => out += month_name,
            Some('b' | 'h') => out += &month_name[..3],
            Some('A') => out += day_name,
            Some('a') => out += &day_name[..3],
            Some('H') => out += &format!("{hour:02}"),
            Some('I') => out += &format!("{twelve:02}"),
            Some('M') => out += &format!("{minute:02}"),
            Some('S') => out += &format!("{second:02}"),
            Some('p') => out += if hour < 12 { "AM" } else { "PM" },
            Some('j') => out += &format!("{:03}", days - days_before_year(year) + 1),
            Some('F') => out += &format!("{year}-{month:02}-{day:02}"),
            Some('T') => out += &format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => out += "UTC",
            Some('z') => out += "+0000",
            Some('%') => out.push('%'),
            Some(other) => out.extend(['%', other]),
            None => out.push('%'),
        }
    }
    out
}

/// Days from 1970-01-01 to the first of January of `year`, in the proleptic Gregorian calendar.
fn days_before_year(year: i64) -> i64 {
    let past = year - 1;
    past * 365 + past.div_euclid(4) - past.div_euclid(100) + past.div_euclid(400) - 719_162
}

/// Year, month and day of a day after 1970-01-01.
fn civil(days: i64) -> (i64, i64, i64) {
    let mut year = 1970 + days.div_euclid(365);
    while days_before_year(year) > days {
        year -= 1;
    }
    while days_before_year(year + 1) <= days {
        year += 1;
    }
    let leap = days_before_year(year + 1) - days_before_year(year) == 366;
    let lengths = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut day = days - days_before_year(year);
    for (month, length) in lengths.into_iter().enumerate() {
        if day < length {
            return (year, month as i64 + 1, day + 1);
        }
        day -= length;
    }
    (year, 12, 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_date_1() {
        let all = "%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %I%p %e %% %Q";
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00:00 Thursday Thu January Jan 001 70 12AM  1 % %Q"),
            (951_827_696, "2000-02-29 12:34:56 Tuesday Tue February Feb 060 00 12PM 29 % %Q"),
            (1_735_689_599, "2024-12-31 23:59:59 Tuesday Tue December Dec 366 24 11PM 31 % %Q"),
            (1_735_689_600, "2025-01-01 00:00:00 Wednesday Wed January Jan 001 25 12AM  1 % %Q"),
            (i64::MAX, "9999-12-31 23:59:59 Friday Fri December Dec 365 99 11PM 31 % %Q"),
            (-1, "1969-12-31 23:59:59 Wednesday Wed December Dec 365 69 11PM 31 % %Q"),
        ] {
            assert_eq!(strftime(all, unix_s), expected);
        }
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let mut previous = civil(-200_000);
        for days in -199_999..200_000 {
            let (year, month, day) = civil(days);
            let (y, m, d) = previous;
            let follows = (year, month, day) == (y, m, d + 1)
                || (year, month, day) == (y, m + 1, 1) && d >= 28
                || (year, month, day) == (y + 1, 1, 1) && (m, d) == (12, 31);
            assert!(follows, "{previous:?} then {:?}", (year, month, day));
            previous = (year, month, day);
        }
    }
}
