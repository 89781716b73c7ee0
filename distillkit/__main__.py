"""`python -m distillkit`."""

import os
import sys

# `python -m` looks for modules in the current folder first; one that holds a student or a teacher
# may be a stranger's
HELD = ("student.yaml", "teacher.yaml", "student/student.yaml", "teacher/teacher.yaml")
if not getattr(sys.flags, "safe_path", False) and sys.path[0] in ("", os.getcwd()) and any(map(os.path.exists, HELD)):
    del sys.path[0]
    os.environ["PYTHONSAFEPATH"] = "1"  # of the processes that this one starts

from distillkit.cli.front import main  # noqa: E402 (after the folder is out of the way)

if __name__ == "__main__":
    sys.exit(main())
