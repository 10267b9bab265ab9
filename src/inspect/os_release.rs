//! os-release(5).

use super::assignments::Assignments;

/// Where it is, in the order systemd looks, and where NixOS keeps it before its first boot.
pub const PATHS: [&str; 3] = [
    "/etc/os-release",
    "/usr/lib/os-release",
    "/nix/var/nix/profiles/system/etc/os-release",
];

/// What a release file says. What it does not say is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Distribution, as os-release(5) writes `ID`.
    pub id: Option<String>,
    /// Distributions it derives from, closest first.
    pub id_like: Vec<String>,
    /// Name without version.
    pub name: Option<String>,
    /// Name for people.
    pub pretty_name: Option<String>,
    /// Version, as precise as the file has it.
    pub version: Option<String>,
    /// `VERSION_ID`.
    pub version_id: Option<String>,
    /// Codename.
    pub codename: Option<String>,
    /// Variant.
    pub variant_id: Option<String>,
    /// Build.
    pub build_id: Option<String>,
}

/// Most distributions taken from `ID_LIKE`.
const MAX_LIKE: usize = 16;

/// Reads an os-release file. `None` if it says nothing that identifies a system.
pub fn parse(text: &[u8]) -> Option<Release> {
    let keys = Assignments::parse(text);
    let version_id = keys.text("VERSION_ID");
    // VERSION often has the point release that VERSION_ID lacks: `20.04.6 LTS (Focal Fossa)`.
    let precise = keys.text("VERSION").and_then(|v| {
        let word = v.split([' ', ',']).next()?;
        let rest = word.strip_prefix(version_id.as_deref()?)?;
        (rest.starts_with('.') && rest.len() > 1).then(|| word.to_owned())
    });
    let release = Release {
        // "If not set, a default of ID=linux may be used."
        id: keys.text("ID").map(|id| id.to_ascii_lowercase()),
        id_like: keys
            .text("ID_LIKE")
            .map(|l| {
                let words = l.split_ascii_whitespace().take(MAX_LIKE);
                words.map(str::to_ascii_lowercase).collect()
            })
            .unwrap_or_default(),
        name: keys.text("NAME"),
        pretty_name: keys.text("PRETTY_NAME"),
        version: precise.or_else(|| version_id.clone()),
        version_id,
        codename: keys
            .text("VERSION_CODENAME")
            .or_else(|| keys.text("UBUNTU_CODENAME")),
        variant_id: keys.text("VARIANT_ID"),
        build_id: keys.text("BUILD_ID").or_else(|| keys.text("IMAGE_VERSION")),
    };
    let known = release.id.is_some() || release.name.is_some() || release.pretty_name.is_some();
    known.then_some(release)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_release_hides_in_version() {
        let focal = parse(
            b"NAME=\"Ubuntu\"\nVERSION=\"20.04.6 LTS (Focal Fossa)\"\nID=ubuntu\nID_LIKE=debian\n\
              PRETTY_NAME=\"Ubuntu 20.04.6 LTS\"\nVERSION_ID=\"20.04\"\nVERSION_CODENAME=focal\n",
        )
        .unwrap();
        assert_eq!(focal.version.as_deref(), Some("20.04.6"));
        assert_eq!(focal.version_id.as_deref(), Some("20.04"));
        assert_eq!(focal.codename.as_deref(), Some("focal"));
        assert_eq!(focal.id_like, ["debian"]);
        assert_eq!(parse(b"garbage\n\0\xff"), None);
    }
}
