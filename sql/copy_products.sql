-- Loads a catalogue file; COPY is several times faster than INSERT.
COPY products ({columns}) FROM STDIN
