"""Python methods in processes of their own: started, spoken with, ended; and what a folder of code declares."""
