"""Extensions of files that run, or that hide one that runs, and of those that seem harmless."""

from __future__ import annotations

#: The extensions that Gmail refuses, and those that Windows or a common program runs as well.
_DANGEROUS = (
    "ade adp apk appx appxbundle bat cab chm cmd com cpl diagcab dll dmg exe hta img ins iso "
    "isp jar jnlp js jse lnk mde msc msi msix msixbundle msp mst nsh pif ps1 scr sct shb sys "
    "vb vbe vbs vhd vhdx vxd wsc wsf wsh xll "
    "ace ani appinstaller appref-ms application gadget hlp inf job library-ms one onepkg ppkg "
    "ps1xml ps2 psc1 psc2 psd1 psm1 reg scf search-ms settingcontent-ms slk svg udl url vhdx "
    "website ws"
)
#: Extensions behind which a dangerous one is disguised.
_HARMLESS = (
    "doc docx xls xlsx ppt pptx odt ods odp pdf txt rtf csv htm html xml jpg jpeg png gif bmp "
    "tif tiff webp mp3 mp4 avi mov wav zip rar 7z gz eml msg ics vcf log"
)

DANGEROUS = frozenset(_DANGEROUS.split())
HARMLESS = frozenset(_HARMLESS.split())
