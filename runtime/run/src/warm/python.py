# Waits, started and ready, for what it is to run: the words of a command line for python3, a NUL behind each, from the descriptor
# that the first argument names. What is run finds the interpreter as if it had been started with them.
def apex_warm():
    import os
    import sys

    fd = int(sys.argv[1])
    os.write(fd, b"r")
    words = os.read(fd, 1 << 18)
    os.close(fd)
    if not words:
        # Nobody asks any more.
        os._exit(125)
    argv = [os.fsdecode(word) for word in words.split(b"\0")[:-1]]
    del globals()["apex_warm"]
    rest = argv[1:]
    sys.orig_argv[:] = argv
    # Not to be seen in a traceback: this function and the one that runs.
    own_frames = 2
    if rest[:1] == ["-c"] and len(rest) > 1:
        sys.argv[:] = ["-c"] + rest[2:]
        run = lambda main: exec(compile(rest[1], "<string>", "exec"), main)
    elif rest[:1] == ["-m"] and len(rest) > 1:
        import runpy

        sys.argv[:] = ["-m"] + rest[2:]
        sys.path[:1] = [os.getcwd()]
        run = lambda main: runpy._run_module_as_main(rest[1])
    elif rest and not rest[0].startswith("-") and os.path.isfile(rest[0]):
        sys.argv[:] = rest
        sys.path[:1] = [os.path.dirname(os.path.realpath(rest[0]))]

        def run(main):
            with open(rest[0], "rb") as file:
                text = file.read()
            main["__file__"] = rest[0]
            exec(compile(text, rest[0], "exec"), main)

    else:
        # Options change how an interpreter starts: this one has.
        os.execv(sys.executable, argv)
    try:
        run(sys.modules["__main__"].__dict__)
    except SystemExit:
        raise
    except BaseException as error:
        trace = error.__traceback__
        for _ in range(own_frames):
            trace = trace.tb_next if trace is not None else None
        sys.excepthook(type(error), error.with_traceback(trace), trace)
        if isinstance(error, KeyboardInterrupt):
            # As the interpreter ends itself then.
            import _signal

            _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
            os.kill(os.getpid(), _signal.SIGINT)
        sys.exit(1)


apex_warm()
