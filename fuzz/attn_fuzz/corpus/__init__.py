"""Cases that failed once, and run again before anything is drawn: files, and a database that runs fill."""
