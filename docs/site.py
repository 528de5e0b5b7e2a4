"""Builds the documentation's site: `python docs/site.py FOLDER`. A broken link is an error.

The pages are the repository's own files, each at its own path, so that their links hold there too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = (
    *("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "demo/README.md"),
    *("examples/README.md", "plugins/llm-rwkv-world/README.md"),
)
# What pages link to beside each other.
FILES = ("examples/*.py", "examples/*.ipynb")
# No theme or script is fetched from anywhere when a page is read.
CONFIG = """\
site_name: mlc-rwkv-world
docs_dir: pages
site_dir: site
use_directory_urls: false
strict: true
theme:
  name: mkdocs
  highlightjs: false
plugins: []
validation:
  links: {not_found: warn, anchors: warn, absolute_links: warn, unrecognized_links: warn}
  nav: {omitted_files: ignore}
"""


def main(site: Path) -> int:
    """Writes the site into the folder `site`; gives mkdocs' exit status."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pages = [ROOT / page for page in PAGES]
        pages += [path for pattern in FILES for path in sorted(ROOT.glob(pattern))]
        pages += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "docs").glob("*.svg"))
        for page in pages:
            target = work / "pages" / page.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(page, target)
        (work / "mkdocs.yml").write_text(CONFIG, encoding="utf-8")
        # With --quiet it counts no warning, and nothing were strict.
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "mkdocs.yml"]
        done = subprocess.run(command, cwd=work, check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode == 0:
            shutil.copytree(work / "site", site, dirs_exist_ok=True)
        else:
            sys.stderr.write(done.stderr)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
