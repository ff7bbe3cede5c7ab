"""The reports of findings, findings/PACKAGE/NAME.toml: what the owner of a kernel is told."""

import msgspec
from attn_fuzz import foreign, inputs
from attn_lab.findings.places import file_of, package_of

CONFIRMED = ("closed form", "second implementation", "the package's own reference")


class Report(msgspec.Struct, forbid_unknown_fields=True):
    """findings/PACKAGE/NAME.toml: what the owner of a kernel is told of a finding, besides what the finding says.

    Attributes:
        title: the title of an issue.
        kernel: the function at fault.
        lines: at fault, "file:first-last" in the version in which the finding was seen.
        confirmed: what says that it is no false alarm: one of CONFIRMED, a colon, and what it says.
        since: the first version or commit that is known to have the bug, and the last one that is known not to have it.
        newest: the newest version or commit that was looked at, and whether it has the bug.
        harm: the severity.
        sent_by: lines of engines that send such a call, "file:line what". Empty: no engine is known to send one.
        gpu: of a finding that needs a GPU (`Finding.needs_gpu`), which GPU showed it, and how a CPU imitates it. Its script
            does so where there is no GPU. None: the finding shows on a CPU.
        launches: True if the script launches kernels.
        needs: a file that the source must have; a source without it has not the finding. None: any has it.
        left: what the repair (`attn_fuzz.findings.repairs`) does not change, though it has the bug, too.
    """

    title: str
    kernel: str
    lines: list[str]
    confirmed: str
    since: str
    newest: str
    harm: str
    sent_by: list[str] = []
    gpu: str | None = None
    launches: bool = True
    needs: str | None = None
    left: str = ""

    def __post_init__(self) -> None:
        if self.confirmed_by not in CONFIRMED:
            raise ValueError(f"confirmed: got {self.confirmed!r}, expected to begin with one of {', '.join(CONFIRMED)}")

    @property
    def confirmed_by(self) -> str:
        return self.confirmed.partition(":")[0]


def load(name: str) -> Report:
    """
    Raises:
        InputError: the finding has no report.
    """
    return inputs.read_toml_as(file_of(name, ".toml"), Report)


def is_emulated(name: str) -> bool:
    """True if kernels that the script of a finding launches show it on the emulator, too."""
    found = load(name)
    return found.launches and found.gpu is None


def is_in(name: str) -> bool:
    """True if the source of a finding's package that is here is one that has the finding."""
    needs = load(name).needs
    return needs is None or (foreign.sources(package_of(name)).parent / needs).is_file()
