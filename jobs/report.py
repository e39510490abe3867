"""Make the page of a run or a search again, also while it trains; or a W&B Report of it.

python jobs/report.py --run runs/demo
python jobs/report.py --search searches/first --watch           # on loopback, following a running search
python jobs/report.py --search searches/first --wandb ENTITY/PROJECT
python jobs/report.py --run runs/a --against runs/b --wandb ENTITY/PROJECT
"""

from __future__ import annotations

import html
import os
import secrets
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from medgan.config import Refused
from medgan.terminal import Parser, absolute, command

if TYPE_CHECKING:
    from medgan.folder import RunFolder, SearchFolder


def parser() -> Parser:
    parser = Parser(__doc__)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", help="run folder of jobs/train.py: a path or a URI")
    what.add_argument("--search", help="search folder of jobs/search.py: a path or a URI")
    parser.add_argument("--watch", action="store_true", help="serve a search's page on loopback until Ctrl-C")
    parser.add_argument("--port", type=int, default=8266, help="of --watch (default 8266; 0: any that is free)")
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="save a W&B Report there")
    parser.add_argument("--against", metavar="RUN", help="with --run and --wandb: compare with this run")
    parser.add_argument("--verbose", action="store_true", help="show tracebacks")
    return parser


def main(argv: Sequence[str]) -> None:
    args = parser().parse_args(argv)
    if args.watch and not args.search:
        raise Refused("--watch: follows a search; name it with --search")
    if args.watch and args.wandb:
        raise Refused("--watch: serves a page here, --wandb saves a report there; give one of them")
    if not 0 <= args.port <= 65535:
        raise Refused(f"--port {args.port}: must be from 0 to 65535")
    if bool(args.against) != bool(args.run and args.wandb):
        raise Refused("--against: compares two runs in a W&B Report, with --run and --wandb")
    subject = absolute("--run" if args.run else "--search", args.run or args.search)

    from medgan.folder import SearchFolder

    if args.run:
        folder = opened("--run", subject)
        if args.wandb:
            save(args.wandb, folder, opened("--against", absolute("--against", args.against)))
            return
        from medgan import report

        folder.write("report.html", report.run_page(folder))
    else:
        search = SearchFolder(subject)
        if search.settings() is None:
            raise Refused(f"--search {subject}: no search in it; name the folder that jobs/search.py wrote")
        if args.wandb:
            save(args.wandb, search)
            return
        if args.watch:
            watch(search, args.port)
            return
        from medgan.search_page import search_page

        search.write("report.html", search_page(search))
    print(f"page: {subject}/report.html")


def opened(flag: str, location: str) -> RunFolder:
    from medgan.folder import RunFolder

    folder = RunFolder(location)
    if folder.config() is None or not folder.exists("metrics.jsonl"):
        raise Refused(f"{flag} {location}: no run in it; name the folder that jobs/train.py wrote")
    return folder


def save(where: str, subject: RunFolder | SearchFolder, against: RunFolder | None = None) -> None:
    """Save a W&B Report, and say where it is."""
    from medgan import wandb_report
    from medgan.folder import SearchFolder
    from medgan.tracking import has_wandb_key, kept_offline

    entity, _, project = where.partition("/")
    if not entity or not project or "/" in project:
        raise Refused(f"--wandb {where}: write it as ENTITY/PROJECT")
    if kept_offline():
        raise Refused(f"--wandb: WANDB_MODE={os.environ['WANDB_MODE']} keeps W&B off the network; unset it")
    if not has_wandb_key():
        raise Refused("--wandb: no API key; set WANDB_API_KEY or run `wandb login`")
    if isinstance(subject, SearchFolder):
        made = wandb_report.search_report(subject, entity, project)
    else:
        assert against is not None
        made = wandb_report.pair_report(subject, against, entity, project)
    made.save()
    print(f"report: {made.url}")


def watch(folder: SearchFolder, port: int) -> None:
    """Serve the search's page, made anew for every request, until Ctrl-C.

    It shows images: it is on loopback alone, at a path that the other users of this host cannot guess, and under the
    names of this host alone, so that no page of elsewhere reads it by a name of its own that leads here.
    """
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    from medgan.search_page import search_page

    path = f"/{secrets.token_urlsafe(16)}/"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            host = self.headers.get("Host", "").rpartition(":")[0]  # a tunnel's port is another one
            if host not in ("127.0.0.1", "localhost", "[::1]") or self.path != path:
                self.send_error(404)
                return
            try:
                content, status = search_page(folder, refresh_s=15).encode(), 200
            except Exception as error:  # a file that is being written, or damaged: the next request may do
                content, status = f"<meta http-equiv=refresh content=15>{html.escape(str(error))}".encode(), 503
            self.send_response(status)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("Referrer-Policy", "no-referrer")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None: ...

    try:
        server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise Refused(f"--port {port}: {error.strerror}; --port 0 takes one that is free") from None
    with server:
        print(f"page: http://127.0.0.1:{server.server_port}{path} until Ctrl-C", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    sys.exit(command(main))
